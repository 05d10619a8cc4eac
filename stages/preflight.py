"""Check the whole of params.yaml before any work starts."""

from pathlib import Path

from scratchlm.artifacts import write_text
from scratchlm.entry import run
from scratchlm.params import read_params
from scratchlm.preflight import check_together
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


def main(params: Path, marker: Path) -> None:
    check_together(read_params(params, Params, whole=True))
    write_text(marker, "params.yaml was checked\n")


if __name__ == "__main__":
    run(main)
