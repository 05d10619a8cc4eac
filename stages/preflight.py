"""Check the whole of params.yaml before any work starts; clear away what it no longer names; say how this computes."""

from pathlib import Path
from typing import get_args

from scratchlm.artifacts import remove_others, write_json, write_text
from scratchlm.data.catalogue import GPT2Size
from scratchlm.entry import run
from scratchlm.fingerprint import describe_arithmetic
from scratchlm.params import read_params
from scratchlm.preflight import check_together
from scratchlm.runtime import set_up
from stages import (
    ablate_spam,
    download,
    finetune_instruct,
    finetune_spam,
    generate,
    judge,
    load_gpt2,
    pretrain,
    tokenize,
)


class Params(
    download.Params,
    tokenize.Params,
    pretrain.Params,
    load_gpt2.Params,
    finetune_spam.Params,
    ablate_spam.Params,
    finetune_instruct.Params,
    generate.Params,
    judge.Params,
):
    """Every parameter that some stage reads."""


def refuse_strangers(folder: Path, ours: set[str]) -> None:
    """Raises ValueError naming what a user put into `folder`, which is neither deleted nor taken into the results."""
    for path in sorted(folder.glob("[!.]*")):
        if path.name not in ours:
            raise ValueError(
                f"{path} is not an output of this pipeline; move it to another folder, because the report depends on "
                f"all that {folder} holds"
            )


def main(params: Path, loaded: Path, ablated: Path, models: Path, marker: Path, metrics: Path) -> None:
    p = read_params(params, Params, whole=True)
    check_together(p)
    # What another params.yaml left in folders that report depends on would change its hash
    trained = {"pretrain", "finetune_spam", "finetune_instruct"}
    refuse_strangers(models, trained.union(f"gpt2-{size}" for size in get_args(GPT2Size)))
    remove_others(models, trained.union(f"gpt2-{size}" for size in p.gpt2_sizes))
    remove_others(loaded, p.gpt2_sizes)
    remove_others(ablated, p.spam_ablations)
    write_json(metrics, describe_arithmetic(set_up(p)))
    write_text(marker, "params.yaml was checked\n")


if __name__ == "__main__":
    run(main)
