"""How far a stage is: a bar on a terminal; elsewhere a line every ten seconds, and none for what is shorter."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from tqdm import tqdm

from scratchlm.run.display import shortened

SECONDS_BETWEEN_BARS = 0.2
SECONDS_BETWEEN_LINES = 10.0
BAR = "{desc}: {n_fmt}/{total_fmt} |{bar}| {remaining} left, {rate_fmt}"
BAR_WITH_VALUES = "{n_fmt}/{total_fmt} |{bar}| {remaining} left{postfix}"  # after a name, all fit 80 columns
NAME_CHARACTERS = 14
UNKNOWN_TOTAL = "{desc}: {n_fmt}{unit}, {rate_fmt}"
LINE = "{desc}: {n_fmt} of {total_fmt} {unit}s, {remaining} left"
LINE_OF_BYTES = "{desc}: {n_fmt}B of {total_fmt}B, {remaining} left"


class Progress:
    """The progress of `total` units, None if that is not known, which begins at `done` of them.

    title: shown before the numbers; beside values, a terminal has room only for what follows its @, as in
    ablate_pretrain@rope. stream: where it is shown, by default standard error. clock: seconds.
    """

    def __init__(
        self, title: str, total: int | None, done: int, unit: str, *, stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._meter: dict[str, Any] = {"total": total, "initial": done, "unit": unit, "unit_scale": unit == "B"}
        self._title, self._stream, self._clock = title, stream or sys.stderr, clock
        self._start = self._shown = clock()
        self._n, self._note = done, ""
        self._bar: tqdm[Any] | None = None
        if self._stream.isatty():
            form = UNKNOWN_TOTAL if total is None else BAR
            self._bar = tqdm(
                desc=title, file=self._stream, bar_format=form, leave=False, dynamic_ncols=True, **self._meter
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, n: int = 1, values: Callable[[], str] | None = None) -> None:
        """Add `n` units. values: returns what is shown beside them; called only if something is shown now."""
        self._n += n
        now = self._clock()
        if now - self._shown < (SECONDS_BETWEEN_LINES if self._bar is None else SECONDS_BETWEEN_BARS):
            return
        self._shown = now
        text = values() if values else ""
        if self._bar is not None:
            self._bar.n = self._n
            if text:
                name = shortened(self._title.partition("@")[2], NAME_CHARACTERS) or self._meter["unit"]
                self._bar.bar_format = f"{name} {BAR_WITH_VALUES}"
            self._bar.set_postfix_str(text)
            return
        known = LINE_OF_BYTES if self._meter["unit"] == "B" else LINE
        form = known if self._meter["total"] else UNKNOWN_TOTAL
        line = tqdm.format_meter(
            self._n, elapsed=now - self._start, prefix=self._title, bar_format=form + "{postfix}", postfix=text,
            **self._meter,
        )  # fmt: skip
        print(line + self._note, file=self._stream, flush=True)

    def note(self, text: str) -> None:
        """Show a sentence on the way: above the bar, or from now on behind each line."""
        self._note = f"; {text}"
        if self._bar is not None:
            tqdm.write(f"  {text}", file=self._stream)


def in_words(metrics: Mapping[str, float]) -> str:
    """`val.loss 3.452, responses 1,100`: floats with four significant digits."""
    return ", ".join(f"{name} {value:{',' if isinstance(value, int) else '.4g'}}" for name, value in metrics.items())


def training_values(loss: float | None, learning_rate: float, per_second: float, unit: str) -> str:
    """`loss 3.647, lr 9.7e-04, 12.3k tok/s`."""
    words = [] if loss is None else [f"loss {loss:.3f}"]
    return ", ".join([*words, f"lr {learning_rate:.1e}", f"{tqdm.format_sizeof(per_second)} {unit}/s"])


def validation(row: Mapping[str, float]) -> str:
    """The row of a curve in words, but for the metrics on the train split: `step 40: val_loss 3.678`."""
    return f"step {row['step']}: {in_words({key: value for key, value in row.items() if key.startswith('val_')})}"
