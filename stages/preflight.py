"""Check the whole of params.yaml before any work starts."""

from pathlib import Path

from scratchlm.judge.scoring import check_judge
from scratchlm.run.context import Run
from scratchlm.run.files import write_text
from scratchlm.run.params import read_params
from scratchlm.run.stage import start
from scratchlm.tasks.disk import check_disk, disk_needs, plan, planned_steps
from scratchlm.tasks.preflight import check_together, stale_files
from stages import (
    ablate_pretrain,
    ablate_spam,
    download,
    finetune_instruct,
    finetune_preference,
    finetune_spam,
    generate,
    judge,
    load_gpt2,
    load_pretrained,
    pretrain,
    reinforce,
    reward_model,
    tokenize,
)


class Params(
    download.Params, tokenize.Params, pretrain.Params, ablate_pretrain.Params, load_gpt2.Params, load_pretrained.Params,
    finetune_spam.Params, ablate_spam.Params, finetune_instruct.Params, finetune_preference.Params,
    reward_model.Params, reinforce.Params, generate.Params, judge.Params,
):  # fmt: skip
    """Every parameter that some stage reads."""


def main(run: Run, *, params: Path, metrics: Path, data: Path, dvc: Path, marker: Path) -> None:
    p = read_params(params, Params, whole=True)
    check_together(p)
    check_judge(p.judge)
    needs, steps = disk_needs(p), planned_steps(p)
    run.say(plan(p, needs, steps))
    run.record({"disk_bytes": needs._asdict(), "pretraining_steps": steps._asdict()})
    if warning := check_disk(needs, data, dvc):
        run.say(warning)
    for path in stale_files(p, metrics, data):
        run.say(f"{path} belongs to no stage of params.yaml; delete it if you no longer need it")
    write_text(marker, "params.yaml was checked\n")


if __name__ == "__main__":
    start(main)
