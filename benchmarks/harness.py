"""Measure contenders side by side: each in its own process, one call each per round, in turns.

Separate processes keep allocators, thread pools and peak memory apart. Taking turns exposes every contender to the
same disturbances of the machine.
"""

import ctypes
import gc
import multiprocessing
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from tabulate import tabulate
from threadpoolctl import threadpool_info
from tqdm import tqdm

from benchmarks.setting import Setting
from scratchlm.run.code import installed_version

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
PACKAGES = (
    "torch", "numpy", "transformers", "llms-from-scratch", "xllamacpp", "tiktoken", "tokenizers", "pandas", "pyarrow",
    "scikit-learn", "dvc",
)  # fmt: skip
PROCESS_STATUS = Path("/proc/self/status")  # Linux only; peak memory is not measured elsewhere

Run = Callable[[], float]
"""Do a contender's work once and return its amount, in the row's unit. The caller takes the time."""


class Contender(NamedTuple):
    """The untimed preparation: a function of a module, called as setup(**options) in the contender's own process."""

    setup: Callable[..., Run]
    options: Mapping[str, Any]


class Row(NamedTuple):
    """One kind of work. The first contender is ours, the others are baselines.

    targets: how many times as fast as a baseline ours should be. notes: what is equal between the contenders and what
    is not. repeats: the default number of measured rounds.
    """

    unit: str
    contenders: Mapping[str, Contender]
    targets: Mapping[str, float]
    notes: str
    repeats: int = 5


def measure(name: str, row: Row, repeats: int, threads: int) -> dict[str, Any]:
    """Every contender's rate (units per second), seconds and peak memory, and how ours compares; see `results`.

    Raises RuntimeError with the name of a contender that fails and the reason.
    """
    seconds: dict[str, list[float]] = {contender: [] for contender in row.contenders}
    units: dict[str, list[float]] = {contender: [] for contender in row.contenders}
    with workers(name, row, threads) as calls:
        for number in tqdm(range(repeats + 1), desc=name, unit="round"):
            for contender, call in calls.items():
                done, duration = call(run_once)
                if number:  # the first round warms up
                    units[contender].append(done)
                    seconds[contender].append(duration)
        peaks = {contender: call(peak_memory_bytes) for contender, call in calls.items()}
    return results(row, units, seconds, peaks)


def pairs(ours: Sequence[float], theirs: Sequence[float]) -> Iterable[tuple[float, float]]:
    """The rates that are compared where contenders take turns: those of the same round."""
    return zip(ours, theirs, strict=True)


def results(
    row: Row,
    units: Mapping[str, list[float]],
    seconds: Mapping[str, list[float]],
    peaks: Mapping[str, int | None],
    compared: Callable[..., Iterable[tuple[float, float]]] = pairs,
) -> dict[str, Any]:
    """Summarise the rounds. The ratio to a baseline is the median of the ratios of the rates that are compared."""
    rates = {
        name: [done / duration for done, duration in zip(units[name], seconds[name], strict=True)] for name in units
    }
    ours, *baselines = row.contenders
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
    for baseline in baselines:
        ratio = summary([mine / theirs for mine, theirs in compared(rates[ours], rates[baseline])])
        target = row.targets.get(baseline)
        ratios[baseline] = {**ratio, "target": target, "met": None if target is None else ratio["median"] >= target}
        if (mine := peaks[ours]) and (theirs := peaks[baseline]):
            ratios[baseline]["peak_memory"] = mine / theirs
    return {"unit": row.unit, "notes": row.notes, "ours": ours, "contenders": contenders, "ratios": ratios}


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def table(name: str, found: Mapping[str, Any]) -> str:
    """The row as a text table: ours first, then each baseline and how many times as fast ours is."""
    lines = []
    for contender, measured in found["contenders"].items():
        peak, ratio = measured["peak_memory_bytes"], found["ratios"].get(contender)
        target = ratio and ratio["target"]
        lines.append(
            [
                contender,
                _with_range(measured["rate"]),
                mebibytes(peak),
                _with_range(ratio) if ratio else "",
                f"{target:g}, {'met' if ratio['met'] else 'not met'}" if target else "",
            ]
        )
    headers = [name, f"{found['unit']} per second", "peak memory", f"{found['ours']} is … times as fast", "target"]
    return tabulate(lines, headers, disable_numparse=True, colalign=("left", "right", "right", "right", "left"))


def _with_range(values: Mapping[str, float]) -> str:
    median, lowest, highest = (rounded(values[key]) for key in ("median", "lowest", "highest"))
    return f"{median} ({lowest} to {highest})"


def mebibytes(n_bytes: int | None) -> str:
    """Memory in MiB; a dash where it was not measured."""
    return f"{n_bytes / 2**20:,.0f} MiB" if n_bytes else "–"


def rounded(value: float) -> str:
    """A number with four significant digits and no exponent."""
    return f"{float(f'{value:.4g}'):,.0f}" if value >= 1000 else f"{value:.4g}"


def machine(threads: int) -> dict[str, Any]:
    """What the measurements depend on. The peak is the rate of matrix products here, in GFLOP per second."""
    contenders = {
        precision: Contender(matrix_products, {"precision": precision}) for precision in ("float32", "bfloat16")
    }
    found = measure("matrix products", Row("GFLOP", contenders, {}, ""), 3, threads)
    peaks = {name: it["rate"]["highest"] for name, it in found["contenders"].items()}
    return description(threads) | {"peak_gflop_per_second": peaks}


def description(threads: int) -> dict[str, Any]:
    """The processor, the kernels that torch and numpy's OpenBLAS have for it, the system and the versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "openblas": next((it["architecture"] for it in threadpool_info() if it["internal_api"] == "openblas"), None),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {package: installed_version(package) for package in PACKAGES},
        "threads": threads,
    }


def matrix_products(precision: str, device: str = "cpu", size: int = 2048, times: int = 4) -> Run:
    """Square products, large enough that arithmetic dominates, with the kernels that scratchlm selects.

    With slower kernels of torch's own selection, training would exceed this peak.
    """
    context = Setting(precision, device).start()
    a, b = (torch.randn(size, size, device=context.device, dtype=getattr(torch, precision)) for _ in range(2))

    def run() -> float:
        for _ in range(times):
            a @ b
        return times * 2 * size**3 / 1e9

    return run


def about(module: str, threads: int, describe: Callable[[int], dict[str, Any]] | None = None) -> dict[str, Any]:
    """The origin that a result file records; `module` is the one that was called.

    describe: the machine, given the threads; by default `machine`.
    """
    command = shlex.join(["python", "-m", module, *sys.argv[1:]])
    return {"command": command, "commit": commit(), "machine": (describe or machine)(threads)}


def commit() -> str:
    """The measured revision, with `-dirty` if the code differs from it; `unknown` in a copy without its history."""
    git = ["git", "-C", str(REPOSITORY)]
    if not (REPOSITORY / ".git").exists():
        return "unknown"
    revision = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "*.py"], check=False).returncode
    return revision + ("-dirty" if changed else "")


def _processor() -> str:
    """The processor's model as Linux reports it, with the numbers that distinguish generations in virtual machines."""
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
    """One prepared process per contender, each as a function that runs a function in the process and waits."""
    spawn = multiprocessing.get_context("spawn")
    pools: dict[str, ProcessPoolExecutor] = {}
    try:
        with environment(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads)):
            for contender, work in row.contenders.items():  # in sequence: preparation takes memory too
                pools[contender] = ProcessPoolExecutor(1, spawn)
                _result(name, contender, pools[contender].submit(set_up_contender, work, threads))
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
            "to be compared; fix it or remove it from the row"
        ) from error
    return future.result()


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables for processes started in the block: thread pools read them when they load."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


# The following runs in a contender's own process; `_ready` holds its work between calls

_ready: dict[str, Run] = {}


def set_up_contender(contender: Contender, threads: int) -> None:
    torch.set_num_threads(threads)
    _ready["run"] = contender.setup(**contender.options)
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    if PROCESS_STATUS.exists():  # measure the peak from here on, without the preparation
        ctypes.CDLL(None).malloc_trim(0)
        PROCESS_STATUS.with_name("clear_refs").write_text("5", encoding="ascii")


def run_once() -> tuple[float, float]:
    start = time.perf_counter()
    done = _ready["run"]()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return done, time.perf_counter() - start


def peak_memory_bytes() -> int | None:
    """The GPU's memory if the work runs on one, else the memory of the process."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    if not PROCESS_STATUS.exists():
        return None
    lines = PROCESS_STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
