"""How the cost of a training step grows with the model, the context and the batch: `python -m benchmarks.scaling`.

`--curve batch` measures one curve. At each point, steps of scratchlm and matrix products take turns in separate
processes, so that step and peak are from the same minutes. Prints a table; writes
benchmarks/results/scaling_<curve>.json and .svg. The curve over the corpus is benchmarks.scaling_corpus.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from tabulate import tabulate

from benchmarks.baselines import our_config
from benchmarks.charts import Panel, write_chart
from benchmarks.flops import flops_per_token, in_gflop
from benchmarks.harness import RESULTS, Contender, Row, about, matrix_products, measure, mebibytes
from benchmarks.rows.pretraining import Steps, training_steps
from scratchlm.model.config import NANO_CONTEXT_LENGTH, NANO_VOCAB_SIZE, ArchitectureParams, GPTConfig, gpt2_config
from scratchlm.model.gpt import GPTModel, parameter_count
from scratchlm.run.files import write_json

PRECISIONS = ("float32", "bfloat16")
GFLOP_PER_ROUND = 200  # at least: some tenths of a second of a processor
NOTES = (
    "A step is that of the training loop: batch, forward, loss over every token, backward, AdamW, with deterministic "
    "kernels and the batch as one micro batch. FLOP per token: 6 for each number of the blocks' and the head's "
    "matrices, and 12 L T C for attention (Chowdhery et al. 2022, appendix B). Share of the peak: of the matrix "
    "products measured in turn with the steps. Memory: the highest of the process, weights and moments included."
)


class Point(NamedTuple):
    """The batch of one training step: batch_size windows of `window` tokens."""

    config: GPTConfig
    batch_size: int
    window: int

    @property
    def parameters(self) -> int:
        with torch.device("meta"):
            return parameter_count(GPTModel(self.config))


class Curve(NamedTuple):
    """x: the quantity that varies from point to point, called `label`."""

    label: str
    x: Callable[[Point], int]
    points: Sequence[Point]
    notes: str


def fifty_million() -> GPTConfig:
    """Between small and 124M, where no size has a name."""
    shared = our_config("small").model_dump(include={"vocab_size", *ArchitectureParams.model_fields})
    return GPTConfig.model_validate(shared | {"n_layers": 8, "n_heads": 8, "emb_dim": 512})


CURVES = {
    "model": Curve(
        "parameters",
        lambda point: point.parameters,
        [
            Point(config, 4, 256)
            for config in (
                gpt2_config("nano", NANO_VOCAB_SIZE, NANO_CONTEXT_LENGTH),
                our_config("nano"), our_config("small"), fifty_million(), our_config("124M"), our_config("355M"),
            )
        ],
        "Batches of 4 windows of 256 tokens. The first model is the sample's, nano with its vocabulary of 1,024; the "
        "others have GPT-2's 50,257: nano, small, one of 8 layers of width 512, 124M and 355M.",
    ),
    "context": Curve(
        "tokens in a window",
        lambda point: point.window,
        [Point(our_config("124M"), 1024 // window, window) for window in (128, 256, 512, 1024)],
        "GPT-2 124M, 1,024 tokens a step: 8 windows of 128 to one of 1,024, where GPT-2's context ends.",
    ),
    "batch": Curve(
        "windows in a batch",
        lambda point: point.batch_size,
        [Point(our_config("124M"), batch_size, 256) for batch_size in (1, 2, 4, 8, 16, 32)],
        "GPT-2 124M, windows of 256 tokens.",
    ),
}  # fmt: skip


def measured(name: str, point: Point, precision: str, repeats: int, threads: int) -> dict[str, Any]:
    """One point in one precision."""
    per_token = flops_per_token(point.config, point.window)
    steps = math.ceil(GFLOP_PER_ROUND * 1e9 / (point.batch_size * point.window * per_token))
    work = {
        "config": point.config,
        "work": Steps(point.batch_size, point.window, steps, precision),
        "micro_batch_size": point.batch_size,
    }
    contenders = {
        "scratchlm": Contender(in_gflop, {"setup": training_steps, "options": work, "per_token": per_token}),
        "matrix products": Contender(matrix_products, {"precision": precision}),
    }
    found = measure(f"{name}, {precision}", Row("GFLOP", contenders, {}, ""), repeats, threads)
    ours, products = (found["contenders"][contender] for contender in contenders)
    share = found["ratios"]["matrix products"]
    return {
        "precision": precision, "parameters": point.parameters, "window": point.window, "batch_size": point.batch_size,
        "layers": point.config.n_layers, "width": point.config.emb_dim, "vocabulary": point.config.vocab_size,
        "flop_per_token": per_token,
        "tokens_per_second": {key: rate * 1e9 / per_token for key, rate in ours["rate"].items()},
        "seconds_per_step": ours["seconds"]["median"] / steps,
        "share_of_peak": {key: share[key] for key in ("median", "lowest", "highest")},
        "peak_gflop_per_second": products["rate"]["median"],
        "peak_memory_bytes": ours["peak_memory_bytes"],
    }  # fmt: skip


def table(label: str, points: Sequence[dict[str, Any]]) -> str:
    lines = [
        [
            f"{point['x']:,}", point["precision"], f"{point['tokens_per_second']['median']:,.4g}",
            f"{point['seconds_per_step']:.3g}", f"{point['flop_per_token'] / 1e6:,.4g}",
            f"{100 * point['share_of_peak']['median']:.0f} %",
            mebibytes(point["peak_memory_bytes"]),
        ]
        for point in points
    ]  # fmt: skip
    headers = [label, "precision", "tokens per second", "seconds a step", "MFLOP a token", "of the peak", "peak memory"]
    return tabulate(lines, headers, disable_numparse=True, colalign=("right", "left", *["right"] * 5))


def panels(points: Sequence[dict[str, Any]]) -> list[Panel]:
    def series(value: Callable[[dict[str, Any]], float]) -> dict[str, dict[float, float]]:
        return {
            precision: {point["x"]: value(point) for point in points if point["precision"] == precision}
            for precision in PRECISIONS
        }

    return [
        Panel("tokens per second", series(lambda point: point["tokens_per_second"]["median"])),
        Panel("share of the matrix-product peak", series(lambda point: point["share_of_peak"]["median"]), share=True),
        Panel("peak memory, GiB", series(lambda point: (point["peak_memory_bytes"] or math.nan) / 2**30)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curve", choices=list(CURVES), action="append", help="measure only this (repeatable)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds that count")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    origin = about("benchmarks.scaling", options.threads)
    for name in options.curve or CURVES:
        curve = CURVES[name]
        points = [
            {"x": (x := curve.x(point))}
            | measured(f"{x:,} {curve.label}", point, precision, options.repeats, options.threads)
            for point in curve.points
            for precision in PRECISIONS
        ]
        print(f"\n{table(curve.label, points)}\n{curve.notes} {NOTES}\n")
        found = {"curve": name, "x": curve.label, "notes": f"{curve.notes} {NOTES}", "repeats": options.repeats}
        write_json(RESULTS / f"scaling_{name}.json", found | {"points": points} | origin)
        write_chart(
            RESULTS / f"scaling_{name}.svg", f"Training steps of scratchlm: {name}", curve.label, panels(points)
        )


if __name__ == "__main__":
    main()
