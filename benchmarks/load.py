"""Inputs far larger than the pipeline's own: `python -m benchmarks.load --row messages revisions --scale 0.1`.

Each input is made from a seed in a temporary folder. The function of the stage or command runs on it once, in a process
of its own. Prints a table; writes benchmarks/results/load.json, where rows that are not measured stay as they were.
"""

import argparse
import contextlib
import hashlib
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ruamel.yaml import YAML
from tabulate import tabulate

from benchmarks import harness
from benchmarks.baselines import SEED
from benchmarks.harness import REPOSITORY, RESULTS, Contender, Row, Run, about
from benchmarks.rows.corpus import reading, tokenizing, write_text
from benchmarks.sources import stage_params, text_of, tokenizer_of
from scratchlm.compare.clone import private_clone
from scratchlm.compare.compare import compare_revisions
from scratchlm.compare.git import git
from scratchlm.compare.records import SPAM, class_columns
from scratchlm.compare.revision import LOCK
from scratchlm.compare.text import comparison_text
from scratchlm.data.corpus import text_chunks, write_shards
from scratchlm.data.instructions import INSTRUCTION_SCHEMA, write_instructions
from scratchlm.data.labelled_texts import COLLECTION
from scratchlm.data.messages import write_messages
from scratchlm.run.files import read_json, read_splits, write_json, write_table
from scratchlm.tasks.bootstrap import observed
from scratchlm.tasks.scores import PREDICTION_SCHEMA, prediction_rows
from stages import tokenize

SHARD_TOKENS = 10_000
N_PREDICTIONS = 150
PREDICTIONS, METRICS = SPAM.paths[0], "metrics/finetune_spam.json"


class Load(NamedTuple):
    """make: (folder, amount) -> writes the input and returns the options of `setup`, whose work is measured.

    amount: of the inputs at scale 1. fewest: at any scale.
    """

    amount: int
    fewest: int
    unit: str
    make: Callable[[Path, int, "Texts"], dict[str, Any]]
    setup: Callable[..., Run]


class Texts(NamedTuple):
    """The sources that inputs are made of: a text and a vocabulary of the catalogue."""

    source: str = "tiny-shakespeare"
    vocabulary: str = "gpt2-124M"

    def phrases(self) -> Iterator[str]:
        """Yield texts of 5 to 40 words, without end."""
        draws = random.Random(SEED)
        words = text_of(self.source).read_text(encoding="utf-8").split()
        while True:
            start, n_words = draws.randrange(len(words)), draws.randint(5, 40)
            yield " ".join(words[start : start + n_words])


def make_messages(folder: Path, amount: int, texts: Texts) -> dict[str, Any]:
    path = folder / "sms"
    with path.open("w", encoding="utf-8") as file:
        for number, phrase in zip(range(amount), texts.phrases(), strict=False):
            file.write(f"{'spam' if number % 2 else 'ham'}\t{phrase}\n")
    return {"path": path, "folder": folder / "messages", "vocabulary": texts.vocabulary}


def tokenizing_messages(path: Path, folder: Path, vocabulary: str) -> Run:
    tokenizer, p = tokenizer_of(vocabulary), stage_params(tokenize.Params)
    return lambda: write_messages(path, tokenizer, folder, p.tokenize.messages, p.seed, print)["read"]


def make_instructions(folder: Path, amount: int, texts: Texts) -> dict[str, Any]:
    path, phrases = folder / "instructions.json", texts.phrases()
    entries = [dict(zip(("instruction", "input", "output"), phrases, strict=False)) for _ in range(amount)]
    path.write_text(json.dumps(entries), encoding="utf-8")
    return {"path": path, "folder": folder / "instructions", "vocabulary": texts.vocabulary}


def tokenizing_instructions(path: Path, folder: Path, vocabulary: str) -> Run:
    tokenizer, p = tokenizer_of(vocabulary), stage_params(tokenize.Params)

    def run() -> float:
        counts = write_instructions(path, tokenizer, folder, p.tokenize.instructions)
        return sum(counts[split]["records"] for split in ("train", "val", "test"))

    return run


def make_tokenized_instructions(folder: Path, amount: int, texts: Texts) -> dict[str, Any]:
    options = make_instructions(folder, amount, texts)
    tokenizing_instructions(**options)()
    return {"folder": options["folder"]}


def reading_instructions(folder: Path) -> Run:
    """As a finetuning reads them."""
    return lambda: sum(map(len, read_splits(folder, INSTRUCTION_SCHEMA).values()))


def make_corpus(folder: Path, amount: int, texts: Texts) -> dict[str, Any]:
    write_text(folder / "text.txt", texts.source, amount)
    return {"text": folder / "text.txt", "folder": folder / "corpus", "vocabulary": texts.vocabulary}


def make_shards(folder: Path, amount: int, texts: Texts) -> dict[str, Any]:
    """At least `amount` shards; the rest is deleted."""
    text, split = folder / "text.txt", folder / "corpus" / "train"
    write_text(text, texts.source, int(amount * SHARD_TOKENS * 4.5))
    write_shards(text_chunks(text), tokenizer_of(texts.vocabulary), split, SHARD_TOKENS)
    for path in sorted(split.iterdir())[amount:]:
        path.unlink()
    assert len(list(split.iterdir())) == amount
    return {"folder": folder / "corpus"}


def reading_shards(folder: Path) -> Run:
    """Every shard into the memory map, then an epoch of training batches from it."""

    def run() -> float:
        reading(folder, batch_size=8, context_length=1024)()
        return len(list((folder / "train").iterdir()))

    return run


def make_revisions(folder: Path, amount: int, texts: Texts) -> dict[str, Any]:
    """A clone with `amount` commits, which differ in the predictions of the spam classifier and so in its metrics."""
    root, draws = folder / "project", np.random.default_rng(SEED)
    with private_clone(REPOSITORY, "HEAD", empty_cache=True) as clone:
        shutil.copytree(clone, root)
    git(root, "remote", "remove", "origin")
    if (ours := REPOSITORY / ".dvc" / "cache" / "files").exists():  # else only the spam classifier is compared
        shutil.copytree(ours, root / ".dvc" / "cache" / "files")
    (root / ".dvc" / "config.local").unlink()  # it names the cache of the other clone
    label = np.arange(N_PREDICTIONS) % 2
    words = [text for text, _ in zip(texts.phrases(), range(N_PREDICTIONS), strict=False)]
    commits = []
    for number in range(amount):
        probability = np.clip(0.5 + (label - 0.5) * draws.uniform(-0.4, 1, N_PREDICTIONS), 0.01, 0.99)
        probabilities = np.stack([1 - probability, probability], axis=1)
        messages = [{"id": f"sms-{i:05d}", "label": label[i], "text": words[i]} for i in range(N_PREDICTIONS)]
        rows = prediction_rows(messages, probabilities, COLLECTION)
        write_table(root / PREDICTIONS, rows, PREDICTION_SCHEMA)
        metrics = read_json(root / METRICS)
        names = (np.array([row[column] for row in rows]) for column in ("label", "predicted"))
        found = SPAM.statistics(class_columns(*names, probabilities, list(COLLECTION)), {})
        metrics["test"] |= {name: observed(statistic) for name, statistic in found.items()}
        write_json(root / METRICS, metrics)
        _lock(root, PREDICTIONS, METRICS)
        git(root, "add", METRICS, LOCK)
        git(root, "commit", "--quiet", "--message", f"Results {number}")
        commits.append(git(root, "rev-parse", "HEAD"))
    return {"root": root, "commits": commits}


def _lock(root: Path, *outs: str) -> None:
    """Record outputs of finetune_spam in dvc.lock and put them into the cache, as DVC does."""
    yaml = YAML()
    lock = yaml.load(root / LOCK)
    for entry in lock["stages"]["finetune_spam"]["outs"]:
        if entry["path"] in outs:
            content = (root / entry["path"]).read_bytes()
            digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
            entry["md5"], entry["size"] = digest, len(content)
            target = root / ".dvc" / "cache" / "files" / "md5" / digest[:2] / digest[2:]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    yaml.dump(lock, root / LOCK)


def comparing(root: Path, commits: list[str]) -> Run:
    """`scratchlm compare` of all commits: each with the first."""

    def run() -> float:
        with contextlib.chdir(root):
            comparisons = compare_revisions(commits)
            assert "finetune_spam.test" in comparison_text(comparisons)
        assert all(row.verdict for comparison in comparisons for row in comparison.rows[:1])
        return len(commits)

    return run


LOADS = {
    "messages": Load(100_000, 50, "messages", make_messages, tokenizing_messages),
    "instructions": Load(100_000, 50, "instructions", make_instructions, tokenizing_instructions),
    "read_instructions": Load(100_000, 50, "instructions", make_tokenized_instructions, reading_instructions),
    "corpus": Load(2_000_000_000, 100_000, "bytes", make_corpus, tokenizing),
    "shards": Load(1000, 2, "shards", make_shards, reading_shards),
    "revisions": Load(200, 2, "revisions", make_revisions, comparing),
}


def load(name: str, scale: float, texts: Texts, threads: int) -> dict[str, Any]:
    """Make an input and measure the work on it: units, seconds and peak memory of its process."""
    it = LOADS[name]
    with tempfile.TemporaryDirectory(prefix="scratchlm-benchmark-") as folder:
        options = it.make(Path(folder), max(it.fewest, round(it.amount * scale)), texts)
        with harness.workers(name, Row(it.unit, {"scratchlm": Contender(it.setup, options)}, {}, ""), threads) as calls:
            units, seconds = calls["scratchlm"](harness.run_once)
            peak = calls["scratchlm"](harness.peak_memory_bytes)
    return {"unit": it.unit, "units": units, "seconds": seconds, "peak_memory_bytes": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", choices=list(LOADS), nargs="+", default=list(LOADS))
    parser.add_argument("--scale", type=float, default=1.0, help="of the amounts")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    path = RESULTS / "load.json"
    rows = read_json(path)["rows"] if path.exists() and options.scale == 1 else {}
    rows |= {name: load(name, options.scale, Texts(), options.threads) for name in options.row}
    lines = [
        [
            name, f"{row['units']:,.0f} {row['unit']}", f"{row['seconds']:.3g} s",
            harness.mebibytes(row["peak_memory_bytes"]),
        ]
        for name, row in rows.items()
    ]  # fmt: skip
    print(tabulate(lines, ["load", "amount", "time", "peak memory"], disable_numparse=True))
    if options.scale == 1:
        write_json(path, {"rows": rows} | about("benchmarks.load", options.threads))


if __name__ == "__main__":
    main()
