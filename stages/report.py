"""Everything on one self-contained page."""

from pathlib import Path

from scratchlm.artifacts import write_text
from scratchlm.entry import run
from scratchlm.evaluation.report import collect, render


def main(
    params: Path, pipeline: Path, metrics: Path, samples: Path, predictions: Path, responses: Path, models: Path,
    page: Path,
) -> None:  # fmt: skip
    write_text(page, render(collect(params, pipeline, metrics, samples, predictions, responses, models)))


if __name__ == "__main__":
    run(main)
