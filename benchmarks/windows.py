"""How a training begins to read a corpus, and how fast it reads: `python -m benchmarks.windows --tokens 10_000_000`.

For each size, side by side: row groups decoded when a window first needs them, and the whole split decoded before the
first window. Each is a process of its own that reads one corpus: the first batch, then epochs of windows in random
order. Prints a table; writes benchmarks/results/windows.json.
"""

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tabulate import tabulate
from tqdm import tqdm

from benchmarks import harness
from benchmarks.baselines import SEED
from benchmarks.harness import PROCESS_STATUS, RESULTS, Contender, Row, Run, about
from scratchlm.data.windows import SHARD_SCHEMA, Corpus, TokenWindows
from scratchlm.model.config import GPT2_VOCAB_SIZE
from scratchlm.run.files import PARQUET_OPTIONS, write_json
from scratchlm.training.order import batch_indices

SHARD_TOKENS = 10_000_000
ROW_GROUP_TOKENS = 1 << 20
PHASES = {  # batch size, context length; the first is one batch, the others are epochs
    "start": (8, 1024),
    "first epoch, 1,025 tokens": (8, 1024),
    "later epoch, 1,025 tokens": (8, 1024),
    "later epoch, 257 tokens": (2, 256),
}
CONTENDERS = {"on demand": True, "whole split first": False}


def write_split(folder: Path, n_tokens: int) -> None:
    """Write shards of token ids whose frequencies fall as those of words do. All have the same content."""
    draws = np.random.default_rng(SEED)
    frequencies = np.cumsum(1 / np.arange(1, GPT2_VOCAB_SIZE + 1))
    token_ids = np.searchsorted(frequencies, draws.random(min(n_tokens, SHARD_TOKENS)) * frequencies[-1])
    table = pa.table([draws.permutation(GPT2_VOCAB_SIZE)[token_ids].astype(np.uint32)], schema=SHARD_SCHEMA)
    folder.mkdir(parents=True)
    first = folder / "00000.parquet"
    pq.write_table(table, first, row_group_size=ROW_GROUP_TOKENS, use_dictionary=False, **PARQUET_OPTIONS)
    for i in range(1, n_tokens // SHARD_TOKENS):
        shutil.copyfile(first, folder / f"{i:05d}.parquet")


def reading(folder: Path, on_demand: bool) -> Run:
    """One phase at each call, in the order of PHASES; returns the tokens that were read."""
    phases = _phases(folder, on_demand)
    return lambda: next(phases)


def _phases(folder: Path, on_demand: bool) -> Iterator[float]:
    corpus = Corpus(folder, GPT2_VOCAB_SIZE)
    for name, (batch_size, context_length) in PHASES.items():
        if on_demand:
            windows = corpus.windows("train", context_length, context_length)
        else:
            windows = TokenWindows(corpus.tokens("train"), context_length, context_length)
        n_batches = 1 if name == "start" else len(windows) // batch_size
        n_tokens = 0
        for step in range(n_batches):
            inputs, _ = windows.batch(batch_indices(step, len(windows), batch_size, SEED))
            n_tokens += inputs.size + batch_size
        yield n_tokens


def resident_bytes() -> dict[str, int]:
    """The memory of this process, and the pages of files in it, which the system can drop."""
    lines = PROCESS_STATUS.read_text(encoding="ascii").splitlines()
    found = {
        name: int(value.split()[0]) * 1024
        for name, _, value in (line.partition(":") for line in lines)
        if "Rss" in name
    }
    return {"own": found["RssAnon"], "files": found["RssFile"] + found["RssShmem"]}


def measured(n_tokens: int, threads: int) -> list[dict[str, Any]]:
    """For each contender: seconds and tokens of each phase, and the resident memory after the last."""
    with tempfile.TemporaryDirectory(prefix="scratchlm-benchmark-") as folder:
        write_split(Path(folder) / "corpus" / "train", n_tokens)
        options = {name: {"folder": Path(folder) / "corpus", "on_demand": it} for name, it in CONTENDERS.items()}
        row = Row("tokens", {name: Contender(reading, it) for name, it in options.items()}, {}, "")
        found: dict[str, dict[str, Any]] = {name: {"tokens": n_tokens, "contender": name} for name in CONTENDERS}
        with harness.workers("windows", row, threads) as calls:
            for phase in tqdm(PHASES, desc=f"{n_tokens:,} tokens", unit="phase"):
                for name, call in calls.items():
                    n_read, seconds = call(harness.run_once)
                    found[name][phase] = {"tokens": n_read, "seconds": seconds}
            for name, call in calls.items():
                found[name]["resident_bytes"] = call(resident_bytes)
    return list(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[10_000_000, 100_000_000, 1_000_000_000])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    rows = [row for n_tokens in options.tokens for row in measured(n_tokens, options.threads)]
    lines = [
        [
            f"{row['tokens']:,}", row["contender"], f"{row['start']['seconds']:.3g} s",
            *(f"{row[phase]['tokens'] / row[phase]['seconds'] / 1e6:,.3g} M/s" for phase in [*PHASES][1:]),
            *(harness.mebibytes(row["resident_bytes"][kind]) for kind in ("own", "files")),
        ]
        for row in rows
    ]  # fmt: skip
    print(tabulate(lines, ["tokens", "decoded", *PHASES, "memory", "pages of files"], disable_numparse=True))
    write_json(RESULTS / "windows.json", {"rows": rows} | about("benchmarks.windows", options.threads))


if __name__ == "__main__":
    main()
