"""Measuring contenders side by side: each in a process of its own, one call of each a round, taking turns.

A process of its own means that one contender's allocator, thread pool and peak memory do not touch another's; taking
turns means that what slows the machine for a while slows all of them.
"""

import ctypes
import gc
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from tabulate import tabulate
from tqdm import tqdm

from scratchlm.run.code import installed_version
from scratchlm.run.context import Run as StageRun
from scratchlm.run.device import DeviceParams, set_up

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
PACKAGES = (
    "torch", "numpy", "transformers", "llms-from-scratch", "xllamacpp", "tiktoken", "tokenizers", "pandas", "pyarrow",
    "scikit-learn", "dvc",
)  # fmt: skip
PROCESS_STATUS = Path("/proc/self/status")  # Linux only; elsewhere no peak memory is measured

Run = Callable[[], float]
"""Does a contender's work once and returns how much it was, in the row's unit. It is timed from outside."""


class Contender(NamedTuple):
    """What makes ready, and is not timed: a function of a module, called as setup(**options) in its own process."""

    setup: Callable[..., Run]
    options: Mapping[str, Any]


class Row(NamedTuple):
    """One kind of work. The first contender is ours; `bars` says how many times as fast as a peer we mean to be.

    notes: what is equal between the contenders and what is not. repeats: rounds that count, unless told otherwise.
    """

    unit: str
    contenders: Mapping[str, Contender]
    bars: Mapping[str, float]
    notes: str
    repeats: int = 5


def measure(name: str, row: Row, repeats: int, threads: int) -> dict[str, Any]:
    """Every contender's rate (units per second), seconds and peak memory, and how ours compares; see `results`.

    Raises RuntimeError naming the contender that fails, and why.
    """
    seconds: dict[str, list[float]] = {contender: [] for contender in row.contenders}
    units: dict[str, list[float]] = {contender: [] for contender in row.contenders}
    with workers(name, row, threads) as calls:
        for number in tqdm(range(repeats + 1), desc=name, unit="round"):
            for contender, call in calls.items():
                done, duration = call(_run_once)
                if number:  # the first round warms up
                    units[contender].append(done)
                    seconds[contender].append(duration)
        peaks = {contender: call(_peak_memory_bytes) for contender, call in calls.items()}
    return results(row, units, seconds, peaks)


def results(
    row: Row,
    units: Mapping[str, list[float]],
    seconds: Mapping[str, list[float]],
    peaks: Mapping[str, int | None],
) -> dict[str, Any]:
    """What was measured in each round, summed up. The ratio to a peer is the median of the rounds' own ratios."""
    rates = {
        name: [done / duration for done, duration in zip(units[name], seconds[name], strict=True)] for name in units
    }
    ours, *peers = row.contenders
    contenders = {
        name: {
            "rate": summary(rates[name]),
            "seconds": summary(seconds[name]),
            "units": statistics.median(units[name]),
            "peak_memory_bytes": peaks[name],
        }
        for name in rates
    }
    ratios: dict[str, dict[str, Any]] = {}
    for peer in peers:
        ratio = summary([mine / theirs for mine, theirs in zip(rates[ours], rates[peer], strict=True)])
        bar = row.bars.get(peer)
        ratios[peer] = {**ratio, "bar": bar, "met": None if bar is None else ratio["median"] >= bar}
        if (mine := peaks[ours]) and (theirs := peaks[peer]):
            ratios[peer]["peak_memory"] = mine / theirs
    return {"unit": row.unit, "notes": row.notes, "ours": ours, "contenders": contenders, "ratios": ratios}


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def table(name: str, found: Mapping[str, Any]) -> str:
    """The row as text: ours first, then each peer with how many times as fast ours is."""
    lines = []
    for contender, measured in found["contenders"].items():
        peak, ratio = measured["peak_memory_bytes"], found["ratios"].get(contender)
        bar = ratio and ratio["bar"]
        lines.append(
            [
                contender,
                _with_range(measured["rate"]),
                f"{peak / 2**20:,.0f} MiB" if peak else "–",
                _with_range(ratio) if ratio else "",
                f"{bar:g}, {'met' if ratio['met'] else 'not met'}" if bar else "",
            ]
        )
    headers = [name, f"{found['unit']} per second", "peak memory", f"{found['ours']} is … times as fast", "bar"]
    return tabulate(lines, headers, disable_numparse=True, colalign=("left", "right", "right", "right", "left"))


def _with_range(values: Mapping[str, float]) -> str:
    median, lowest, highest = (figure(values[key]) for key in ("median", "lowest", "highest"))
    return f"{median} ({lowest} to {highest})"


def figure(value: float) -> str:
    """Four digits, without an exponent."""
    return f"{float(f'{value:.4g}'):,.0f}" if value >= 1000 else f"{value:.4g}"


def machine(threads: int) -> dict[str, Any]:
    """What the figures depend on. The peak is what matrix products reach here, in GFLOP per second."""
    contenders = {
        precision: Contender(matrix_products, {"precision": precision}) for precision in ("float32", "bfloat16")
    }
    found = measure("matrix products", Row("GFLOP", contenders, {}, ""), 3, threads)
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {package: installed_version(package) for package in PACKAGES},
        "threads": threads,
        "peak_gflop_per_second": {name: it["rate"]["highest"] for name, it in found["contenders"].items()},
    }


def matrix_products(precision: str, device: str = "cpu", size: int = 2048, times: int = 4) -> Run:
    """Square products, large enough that nothing but arithmetic counts, by the kernels that scratchlm chooses.

    Where torch's own choice is slower, it would be a peak that training exceeds.
    """
    params = DeviceParams(device=device, threads=torch.get_num_threads(), precision=precision)  # type: ignore[arg-type]
    context = StageRun()
    set_up(context, params)
    a, b = (torch.randn(size, size, device=context.device, dtype=getattr(torch, precision)) for _ in range(2))

    def run() -> float:
        for _ in range(times):
            a @ b
        return times * 2 * size**3 / 1e9

    return run


def about(module: str, threads: int) -> dict[str, Any]:
    """What a result file says of its origin; `module` is the one that was called."""
    command = " ".join([f"python -m {module}", *sys.argv[1:]])
    return {"command": command, "commit": commit(), "machine": machine(threads)}


def commit() -> str:
    """The revision that is measured; `-dirty` if the code here differs from it."""
    git = ["git", "-C", str(REPOSITORY)]
    revision = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "*.py"], check=False).returncode
    return revision + ("-dirty" if changed else "")


def _processor() -> str:
    """The processor's model as Linux tells it, with the numbers that tell a virtual machine's generations apart."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor()
    lines = [line.partition(":") for line in path.read_text(encoding="utf-8").splitlines()]
    facts = {key.strip(): value.strip() for key, _, value in lines}
    return (
        f"{facts.get('model name', platform.machine())} (family {facts.get('cpu family')}, model {facts.get('model')})"
    )


@contextmanager
def workers(name: str, row: Row, threads: int) -> Iterator[dict[str, Callable[[Callable[..., Any]], Any]]]:
    """One process a contender, ready to run; each is given as a function that calls a function in it and waits."""
    spawn = multiprocessing.get_context("spawn")
    pools: dict[str, ProcessPoolExecutor] = {}
    try:
        with _environment(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads)):
            for contender, work in row.contenders.items():  # one after the other: making ready takes memory too
                pools[contender] = ProcessPoolExecutor(1, spawn)
                _result(name, contender, pools[contender].submit(_set_up, work, threads))
        yield {
            contender: lambda function, contender=contender, pool=pool: _result(name, contender, pool.submit(function))  # type: ignore[misc]
            for contender, pool in pools.items()
        }
    finally:
        for pool in pools.values():
            pool.shutdown()


def _result(name: str, contender: str, future: Future) -> Any:
    if error := future.exception():
        what = str(error).strip().splitlines() or ["no message"]
        raise RuntimeError(
            f"{name}: contender {contender} failed with {type(error).__name__} ({what[0]}); every contender must run "
            "to be compared, so mend it or take it out of the row"
        ) from error
    return future.result()


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Environment variables that processes started within the block inherit: thread pools read them when loaded."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


# What runs in a contender's own process, which keeps its work here between calls

_ready: dict[str, Run] = {}


def _set_up(contender: Contender, threads: int) -> None:
    torch.set_num_threads(threads)
    _ready["run"] = contender.setup(**contender.options)
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    if PROCESS_STATUS.exists():  # the peak counts from here on: making ready is not the work
        ctypes.CDLL(None).malloc_trim(0)
        PROCESS_STATUS.with_name("clear_refs").write_text("5", encoding="ascii")


def _run_once() -> tuple[float, float]:
    start = time.perf_counter()
    done = _ready["run"]()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return done, time.perf_counter() - start


def _peak_memory_bytes() -> int | None:
    """The card's memory where the work is on one, else the process' own."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    if not PROCESS_STATUS.exists():
        return None
    lines = PROCESS_STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
