"""Check the whole of params.yaml before any work starts; clear away what it no longer names; say how this computes."""

from pathlib import Path

from scratchlm.artifacts import write_json, write_text
from scratchlm.entry import run
from scratchlm.fingerprint import describe_arithmetic
from scratchlm.params import read_params
from scratchlm.preflight import check_together, clear_away_others
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


def main(params: Path, loaded: Path, ablated: Path, models: Path, marker: Path, metrics: Path) -> None:
    p = read_params(params, Params, whole=True)
    check_together(p)
    clear_away_others(p, models, loaded, ablated)
    write_json(metrics, describe_arithmetic(set_up(p)))
    write_text(marker, "params.yaml was checked\n")


if __name__ == "__main__":
    run(main)
