"""Measure on one NVIDIA GPU, against transformers and the book's code: `python -m benchmarks.gpu`.

`--row decode_1` measures one row; each takes at most four minutes. A row that was measured is written at once, to
benchmarks/results/gpu_<card>/<row>.json; what fails is named, and the next row follows. `--contender NAME` measures
that one again and keeps the others of the file, if that is of the same commit. At the end there is one table.
`--together` warms all contenders up at once, where they fit the card and there are many cores.
`--device cpu --size nano` tries everything without a GPU. Needs no DVC, no TensorFlow and no network: finetuning takes
the book's data where SCRATCHLM_MIRROR has it, else the sample's.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_rows import BOOKS, GPT2, NANO, PEAK, SAMPLES, Place, gpu_rows
from benchmarks.harness import RESULTS, Row, about, description, table
from benchmarks.one_by_one import Limits, Preparation, combined, measure_prepared, prepared
from benchmarks.sources import source_file
from benchmarks.summary import GPU_COMMAND, GPU_ROWS, markdown
from scratchlm.run.errors import UserError
from scratchlm.run.files import read_json, write_json

# Dense bfloat16, TFLOP per second, by torch's name of the GPU. Source: NVIDIA's data sheets, whose values for H100 and
# H200 are twice as high because they are for sparse matrices
DATA_SHEET_TFLOPS = {
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H100 80GB HBM3": 989.0,
    "NVIDIA H200": 989.0,
}


def results_folder(card: str) -> Path:
    return RESULTS / f"gpu_{card.lower().replace(' ', '-')}"


def machine(threads: int) -> dict[str, Any]:
    """The card, the processor beside it, the system and the versions."""
    found = description(threads) | {"cuda": torch.version.cuda}
    if not torch.cuda.is_available():
        return found
    card = torch.cuda.get_device_name()
    facts = {"name": card, "memory_bytes": torch.cuda.get_device_properties().total_memory}
    return found | {"card": facts | {"data_sheet_tflop_per_second": DATA_SHEET_TFLOPS.get(card)}}


def in_tflops(found: Mapping[str, Any], flops: int, data_sheet: float | None) -> dict[str, Any]:
    """Of each contender of a training the TFLOP per second, and the share of the data sheet's."""
    rates = {name: it["rate"]["median"] * flops / 1e12 for name, it in found["contenders"].items()}
    shares = {name: rate / data_sheet for name, rate in rates.items()} if data_sheet else None
    return {"tflop_per_second": rates, "share_of_data_sheet": shares}


def measure_row(
    name: str, row: Row, preparation: Preparation, limits: Limits, kept: Mapping[str, Any]
) -> dict[str, Any]:
    """Measure the contenders that are prepared. kept: the rounds of others that were measured before."""
    measured = measure_prepared(name, preparation, limits)
    both = {it: rounds for it, rounds in kept.items() if it not in preparation.pools} | measured["rounds"]
    rounds = {it: both[it] for it in row.contenders if it in both}
    found = combined(row, rounds) | {"row": name, "rounds": rounds, "failed": measured["failed"]}
    if "contenders" in found and PEAK in row.contenders:
        data_sheet = DATA_SHEET_TFLOPS.get(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
        found |= in_tflops(found, row.contenders[PEAK].options["per_token"], data_sheet)
    return found


def rounds_in(path: Path, origin: Mapping[str, Any]) -> dict[str, Any]:
    """The rounds of a result file, if it is of the same commit and size."""
    found = read_json(path) if path.exists() else {}
    return found["rounds"] if all(found.get(key) == origin[key] for key in ("commit", "size")) else {}


def options_of(rows: Sequence[str], contenders: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", choices=rows, action="append", help="measure only this (repeatable)")
    parser.add_argument("--contender", choices=contenders, action="append", default=[], help="only this (repeatable)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--size", choices=["gpt2", "nano"], default="gpt2", help="gpt2: 124M and 355M")
    parser.add_argument("--minutes", type=float, default=4.0, help="at most, for a row")
    parser.add_argument("--repeats", type=int, help="measured rounds, instead of the row's own number")
    parser.add_argument("--together", action="store_true", help="warm up all at once, which takes all their memory")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    data = BOOKS if BOOKS.is_at_hand() else SAMPLES
    known = gpu_rows(GPT2, Place("cuda", "inductor", data))
    options = options_of([*known], [*dict.fromkeys(name for row in known.values() for name in row.contenders)])
    on_card, scale = options.device == "cuda", GPT2 if options.size == "gpt2" else NANO
    if on_card and not torch.cuda.is_available():
        sys.exit(
            "no CUDA device here; this measures on an NVIDIA card, so run it where there is one, or try the code with "
            "--device cpu --size nano"
        )
    card = torch.cuda.get_device_name() if on_card else "cpu"
    rows = gpu_rows(scale, Place(options.device, "inductor" if on_card else "eager", data))
    with suppress(UserError):  # then the contenders that need the file say so
        for source, name in [*data.files, *SAMPLES.files, ("sample-stories", "stories.txt")]:
            source_file(source, name)  # now, since contenders prepare together
    origin = about("benchmarks.gpu", options.threads, machine) | {"size": options.size}
    folder, failed = results_folder(card), []
    with ExitStack() as stack:
        waiting = {}
        for name in options.row or rows:
            row = rows[name]
            chosen = {it: work for it, work in row.contenders.items() if it in (options.contender or row.contenders)}
            limits = Limits(60 * options.minutes, options.repeats or row.repeats, options.threads)
            preparation = prepared(row._replace(contenders=chosen), limits, warm=options.together)
            if chosen:
                waiting[name] = limits, stack.enter_context(preparation) if options.together else preparation
        for _, preparation in waiting.values() if options.together else ():
            preparation.wait()
        for name, (limits, preparation) in waiting.items():
            path = folder / f"{name}.json"
            kept = rounds_in(path, origin) if options.contender else {}
            with nullcontext(preparation) if options.together else preparation as ready:
                found = measure_row(name, rows[name], ready, limits, kept)
            failed += [f"{name}: {contender}: {reason}" for contender, reason in found["failed"].items()]
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, found | origin)
            if "contenders" in found:
                print(f"\n{table(name, found)}\n{rows[name].notes}\n", flush=True)
    print(f"\n{card}, {options.size}\n\n{markdown(folder, options.row or GPU_ROWS, GPU_COMMAND)}")
    if failed:
        sys.exit("\n".join(["", "failed:", *failed]))


if __name__ == "__main__":
    main()
