"""Train GPT-2 124M on one NVIDIA GPU, in bfloat16, with its full context: `python -m benchmarks.gpu`.

scratchlm, transformers and the book's fastest recipe take turns with large matrix products, the GPU's measured peak.
Prints a table; writes benchmarks/results/gpu_<card>.json. `--without NAME` skips a contender, for example one that
torch.compile fails on. `--device cpu --size nano --batch-size 1` tries the code without a GPU.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tabulate import tabulate

from benchmarks.baselines import our_config
from benchmarks.flops import flops_per_token, in_gflop
from benchmarks.harness import RESULTS, Contender, Row, Run, about, matrix_products, measure
from benchmarks.rows.pretraining import LEARNING_RATE, Steps, book_steps, huggingface, training_steps
from scratchlm.model.config import GPT2_CONTEXT_LENGTH, SizeName
from scratchlm.run.files import write_json

BASELINES = ("transformers", "transformers, compiled", "llms-from-scratch")
PEAK = "matrix products"
TARGET = 0.5  # of the measured peak, on cards like the H100 and H200
PADDED_VOCAB_SIZE = 50304  # the recipe's: a multiple of 64, which suits tensor cores
# Dense bfloat16, TFLOP per second, by torch's name of the GPU. Source: NVIDIA's data sheets, whose values for H100 and
# H200 are twice as high because they are for sparse matrices
DATA_SHEET_TFLOPS = {
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H100 80GB HBM3": 989.0,
    "NVIDIA H200": 989.0,
}
NOTES = (
    "Equal: the model's shape, the batch as one micro batch, fused AdamW, dropout 0, the loss over every token. "
    "scratchlm: the step of its own training loop, batches from its windows, deterministic kernels, autocast. "
    "transformers: its model with SDPA, autocast, inputs already on the card; compiled: by torch.compile. "
    "llms-from-scratch: chapter 5's bonus recipe for one card: GPTModelFast with SDPA, compiled, weights and moments "
    "in bfloat16 (no float32 master weights), 50,304 tokens, a head of its own, inputs already on the card. The FLOP "
    "counted are those of scratchlm's model for everyone. Every contender stays on the card while the others run; "
    "memory is what torch allocated for it."
)


def book_recipe(size: SizeName, work: Steps, compiler: str) -> Run:
    """The training step of 01_opt_single_gpu.py in the book's chapter 5 (10_llm-training-speed).

    The original also allows TF32, which affects nothing here: no product is in float32.
    """
    from llms_from_scratch.ch04 import GPTModelFast

    config = our_config(size)
    model: Any = GPTModelFast(
        {
            "vocab_size": PADDED_VOCAB_SIZE, "context_length": config.context_length, "emb_dim": config.emb_dim,
            "n_heads": config.n_heads, "n_layers": config.n_layers, "drop_rate": 0.0, "qkv_bias": True,
        }
    )  # fmt: skip
    model = torch.compile(model.to(work.device, torch.bfloat16).train(), backend=compiler)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1, fused=True)
    return book_steps(model, optimizer, work)


def training_row(
    size: SizeName, work: Steps, compiler: str = "inductor", products: Mapping[str, int] | None = None
) -> Row:
    """compiler: the backend of torch.compile. products: size and times of the peak's matrix products."""
    config = our_config(size)
    ours: dict[str, Any] = {"config": config, "micro_batch_size": work.batch_size}
    theirs: dict[str, Any] = {"size": size, "fused": True}
    baselines = [
        (huggingface, theirs),
        (huggingface, theirs | {"compiler": compiler}),
        (book_recipe, {"size": size, "compiler": compiler}),
    ]
    trainings = {"scratchlm": (training_steps, ours), **dict(zip(BASELINES, baselines, strict=True))}
    per_token = flops_per_token(config, work.window)
    contenders = {
        name: Contender(in_gflop, {"setup": setup, "options": options | {"work": work}, "per_token": per_token})
        for name, (setup, options) in trainings.items()
    }
    contenders[PEAK] = Contender(
        matrix_products, {"precision": work.precision, "device": work.device, **(products or {})}
    )
    return Row("GFLOP", contenders, {PEAK: TARGET}, NOTES)


def in_tokens(found: Mapping[str, Any], per_token: int, data_sheet: float | None) -> list[dict[str, Any]]:
    """Of each training: tokens per second, shares of the measured peak and of the data sheet's, in TFLOP per second."""
    peak = found["contenders"][PEAK]["rate"]["median"]
    return [
        {
            "contender": name,
            "tokens_per_second": {key: rate * 1e9 / per_token for key, rate in it["rate"].items()},
            "share_of_peak": it["rate"]["median"] / peak,
            "share_of_data_sheet": it["rate"]["median"] / 1e3 / data_sheet if data_sheet else None,
            "peak_memory_bytes": it["peak_memory_bytes"],
        }
        for name, it in found["contenders"].items()
        if name != PEAK
    ]


def table(trainings: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> str:
    lines = []
    for it in trainings:
        ratio = found["ratios"].get(it["contender"])
        sheet, memory = it["share_of_data_sheet"], it["peak_memory_bytes"]
        lines.append(
            [
                it["contender"], f"{it['tokens_per_second']['median']:,.4g}", f"{100 * it['share_of_peak']:.1f} %",
                f"{100 * sheet:.1f} %" if sheet else "–", f"{memory / 2**20:,.0f} MiB" if memory else "–",
                f"{ratio['median']:.3g} ({ratio['lowest']:.3g} to {ratio['highest']:.3g})" if ratio else "",
            ]
        )  # fmt: skip
    headers = [
        "",
        "tokens per second",
        "of the peak",
        "of the data sheet",
        "peak memory",
        "scratchlm is … times as fast",
    ]
    return tabulate(lines, headers, disable_numparse=True, colalign=("left", *["right"] * 5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--size", choices=["nano", "small", "124M", "355M"], default="124M")
    parser.add_argument("--batch-size", type=int, default=16, help="windows of 1,024 tokens a step")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--without", action="append", choices=BASELINES, default=[], help="(repeatable)")
    options = parser.parse_args()
    on_card = options.device == "cuda"
    if on_card and not torch.cuda.is_available():
        sys.exit(
            "no CUDA device here; this measures training on an NVIDIA card, so run it where there is one, or try the "
            "code with --device cpu --size nano --batch-size 1"
        )
    card = torch.cuda.get_device_name() if on_card else "cpu"
    row = training_row(
        options.size,
        Steps(options.batch_size, GPT2_CONTEXT_LENGTH, 20 if on_card else 1, "bfloat16", options.device),
        products={"size": 8192, "times": 100} if on_card else None,
    )  # fmt: skip
    row = row._replace(contenders={name: it for name, it in row.contenders.items() if name not in options.without})
    origin = about("benchmarks.gpu", options.threads)
    found = measure("gpu", row, options.repeats, options.threads)
    data_sheet = DATA_SHEET_TFLOPS.get(card)
    trainings = in_tokens(found, flops_per_token(our_config(options.size), GPT2_CONTEXT_LENGTH), data_sheet)
    target, peak = found["ratios"][PEAK], found["contenders"][PEAK]["rate"]["median"] / 1e3
    sheet = f"{data_sheet:g}" if data_sheet else "unknown"
    print(f"\n{card}, bfloat16 peak {peak:,.4g} TFLOP/s measured, {sheet} by the data sheet")
    print(f"\n{table(trainings, found)}\n")
    print(f"target: {TARGET:.0%} of the measured peak, {'met' if target['met'] else 'not met'}\n{row.notes}\n")
    facts = {
        "name": card, "data_sheet_tflop_per_second": data_sheet, "measured_tflop_per_second": peak,
        "memory_bytes": torch.cuda.get_device_properties().total_memory if on_card else None,
        "cuda": torch.version.cuda,
    }  # fmt: skip
    shape = {"size": options.size, "batch_size": options.batch_size, "window": GPT2_CONTEXT_LENGTH}
    write_json(
        RESULTS / f"gpu_{card.lower().replace(' ', '-')}.json",
        found | origin | shape | {"trainings": trainings, "card": facts, "repeats": options.repeats},
    )


if __name__ == "__main__":
    main()
