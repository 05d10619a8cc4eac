"""The arithmetic that computed results, as each stage recorded it, and its name for a person."""

import platform
import re
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from scratchlm.run.errors import UserError
from scratchlm.run.params import check_params, load_yaml

SETTINGS = ("device", "threads", "precision", "compile")  # of params.yaml, that the arithmetic depends on
INFORMATIVE = ("arithmetic", "kernels")  # keys of metrics files that are no results
NAMES = {"AVX512": "AVX-512", "DEFAULT": "baseline", "NO AVX": "baseline", "mps": "Apple's GPU"}


class Arithmetic(NamedTuple):
    """fingerprint: equal where the same bits are expected. kernels: torch's name of the instruction set or the card."""

    fingerprint: str
    kernels: str

    def __str__(self) -> str:
        name = NAMES.get(self.kernels, self.kernels)
        if not name:
            return f"precision {self.fingerprint}"
        return f"{name} kernels" if re.fullmatch(r"[A-Z]+\d*|AVX-512|baseline", name) else name


def recorded(metrics: Iterable[Any]) -> frozenset[Arithmetic]:
    """Return every arithmetic that is recorded in metrics files, given their contents."""
    found = (content for content in metrics if isinstance(content, Mapping) and "arithmetic" in content)
    return frozenset(Arithmetic(content["arithmetic"], content.get("kernels", "")) for content in found)


def results(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a metrics file without what identifies the arithmetic."""
    return {key: value for key, value in metrics.items() if key not in INFORMATIVE}


def tell_apart(first: Collection[Arithmetic], second: Collection[Arithmetic]) -> tuple[str, str]:
    """Return the names of two sets of arithmetic, such as `AVX2 kernels`; equal names are told apart."""
    one, other = (
        " and ".join(sorted({str(each) for each in some})) or "unrecorded arithmetic" for some in (first, second)
    )
    return (one, other) if one != other else (one, f"{other} of another class of processor")


def arithmetic_here(folder: Path) -> str | None:
    """Return the fingerprint of this machine with the parameters of a project; None if it lacks their device.

    A process of its own computes it, so that a card is free when a stage needs it: once for equal parameters.
    """
    try:
        params = load_yaml(folder / "params.yaml")
        return _asked_once(tuple((name, params[name]) for name in SETTINGS))
    except (UserError, TypeError, KeyError):  # a stage says what is wrong
        return None


@cache
def _asked_once(settings: tuple[tuple[str, Any], ...]) -> str | None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_arithmetic_here, dict(settings)).result()


def _arithmetic_here(settings: dict[str, Any]) -> str | None:
    from scratchlm.arithmetic.fingerprint import describe_arithmetic
    from scratchlm.fast.kernels import set_up
    from scratchlm.run.context import Run
    from scratchlm.run.device import DeviceParams

    run = Run()
    with suppress(UserError):
        set_up(run, check_params(settings, DeviceParams, source="params.yaml"))
        return describe_arithmetic(run.device)["arithmetic"]
    return None


def processor() -> str:
    """Return the processor's name, such as `AMD EPYC 9R14`."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        found = re.search(r"^model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        name = found[1] if found else name
    name = re.sub(r"\((R|TM|C)\)|\b(CPU|Processor)\b|@.*|\b[\w-]+-Core\b", " ", name, flags=re.IGNORECASE)
    return " ".join(name.split())
