"""Show everything on one self-contained page."""

from pathlib import Path

from scratchlm.report.inputs import Inputs, collect
from scratchlm.report.page import render
from scratchlm.run.context import Run
from scratchlm.run.files import write_text
from scratchlm.run.stage import start


def main(
    run: Run, *, params: Path, pipeline: Path, profiles: Path, code: Path, sources: Path, tokens: Path, metrics: Path,
    losses: Path, samples: Path, predictions: Path, responses: Path, models: Path, page: Path,
) -> None:  # fmt: skip
    inputs = Inputs(
        params, pipeline, profiles, code, sources, tokens, metrics, losses, samples, predictions, responses, models
    )  # fmt: skip
    write_text(page, render(collect(inputs)))


if __name__ == "__main__":
    start(main)
