"""What a fuzzed part did that no user may see: one file for each kind of exception and place."""

import sys
import traceback
from pathlib import Path


def place(error: BaseException) -> str:
    """Return the kind of an exception and the innermost line of ours on its way."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "/src/scratchlm/" in frame.filename]
    where = f"{Path(ours[-1].filename).stem}-{ours[-1].lineno}" if ours else "elsewhere"
    return f"{type(error).__name__}-{where}"


class Findings:
    """Writes the first finding of each kind to a folder, and counts all; `kinds` has the counts."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.kinds = folder, dict[str, int]()
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, kind: str, data: bytes, text: str) -> None:
        """data: what the fuzzed part was given. text: what came out."""
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        if self.kinds[kind] == 1:
            (self._folder / kind).write_bytes(data)
            print(f"\nFINDING {kind}: {text[:400]}", file=sys.stderr, flush=True)
