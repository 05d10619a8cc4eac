"""Tokenize a corpus of many compressed files in a bucket: `python -m benchmarks.corpus --megabytes 5000 --files 200`.

Half of the files are .txt.gz, half .jsonl.zst; an S3 server in a process of its own holds them. They are pinned, then
tokenized by 1 and by 2 workers, also from a local folder, whose near duplicates are found, too, and the same text as
one local file by all cores, each once in a process of its own. The server works on the same cores. The shards of many
files must be the same each time. Prints a table. Writes benchmarks/results/corpus.json, unless --work selects what to
measure.
"""

import argparse
import gzip
import json
import logging
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem
from tabulate import tabulate
from tqdm import tqdm

from benchmarks import harness
from benchmarks.harness import RESULTS, Contender, Row, Run, about
from benchmarks.rows.corpus import CORPUS, varied_text
from benchmarks.sources import text_of, tokenizer_of
from scratchlm.data.byte_pairs import END_OF_TEXT
from scratchlm.data.corpus import NearDuplicates
from scratchlm.data.corpus_duplicates import duplicates
from scratchlm.data.documents import NumberedFile
from scratchlm.data.manifest import MANIFEST, read_manifest, write_manifest
from scratchlm.data.pinning import pin
from scratchlm.data.tokenizing import tokenize_corpus
from scratchlm.run.files import sha256_of, write_json
from scratchlm.run.resume import Checkpoint

BUCKET = "corpus"
WORKS = ("bucket", "local", "near", "one")
LINES_PER_DOCUMENT = 100
THRESHOLD = 0.8  # of near duplicates
KEYS = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


def serve(addresses: Any) -> None:
    """Answer as an S3 server with one bucket until this process is ended, and send the address."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # no line per request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    boto3.client("s3", endpoint_url=address).create_bucket(Bucket=BUCKET)
    addresses.put(address)
    time.sleep(1e6)


@contextmanager
def s3_server() -> Iterator[None]:
    """Within the block, AWS_ENDPOINT_URL leads to a server with an empty bucket."""
    spawn = multiprocessing.get_context("spawn")
    addresses = spawn.Queue()
    process = spawn.Process(target=serve, args=(addresses,), daemon=True)
    with harness.environment(**KEYS):
        process.start()
        try:
            S3FileSystem.clear_instance_cache()  # which has the address of an earlier server
            with harness.environment(AWS_ENDPOINT_URL=addresses.get(timeout=60)):
                yield
        finally:
            process.kill()
            process.join()


def documents(source: str, n_bytes: int) -> Iterator[str]:
    """Documents of LINES_PER_DOCUMENT lines each, of varied text."""
    for block in varied_text(text_of(source), n_bytes):
        lines = iter(block.decode(errors="ignore").splitlines(keepends=True))
        while document := "".join(islice(lines, LINES_PER_DOCUMENT)):
            yield document


def write_files(source: str, n_bytes: int, n_files: int, folder: Path, text: Path) -> None:
    """Write documents as files of the bucket and of a folder, and into one text file."""
    client, made = boto3.client("s3"), documents(source, n_bytes)
    folder.mkdir()
    with text.open("w", encoding="utf-8") as file:
        for number in tqdm(range(n_files), desc="make", unit="file"):
            texts, size = [], 0
            while size < n_bytes / n_files and (document := next(made, "")):
                texts.append(document)
                size += len(document.encode())
            if number % 2:
                rows = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts))
                name, body = f"{number:04d}.jsonl.zst", pa.compress(rows.encode(), codec="zstd", asbytes=True)
            else:
                name, body = f"{number:04d}.txt.gz", gzip.compress(END_OF_TEXT.join(texts).encode(), compresslevel=6)
            client.put_object(Bucket=BUCKET, Key=name, Body=body)
            (folder / name).write_bytes(body)
            file.writelines(f"{text}{END_OF_TEXT}" for text in texts)


def tokenizing(text: Path, folder: Path, vocabulary: str, split: str, n_bytes: int) -> Run:
    """As in stages/tokenize.py. text: a text file, or a manifest."""
    tokenizer, params = tokenizer_of(vocabulary), CORPUS.model_copy(update={"split": split})

    def run() -> float:
        tokenize_corpus(text, tokenizer, folder, params, Checkpoint())
        return n_bytes

    return run


def finding(manifest: Path, threshold: float, n_bytes: int) -> Run:
    """The search for near duplicates that precedes the tokenization."""
    files = [NumberedFile(number, file) for number, file in enumerate(read_manifest(manifest))]

    def run() -> float:
        with tempfile.TemporaryDirectory() as parts:
            duplicates(files, NearDuplicates(near=threshold), Path(parts))
        return n_bytes

    return run


def measured(make: Callable[..., Run], work: str, workers: int, setup: dict[str, Any]) -> dict[str, Any]:
    """One run in a process of its own: seconds, rate, rate per worker and peak memory."""
    row = Row("bytes", {work: Contender(make, setup)}, {}, "")
    with (
        harness.environment(SCRATCHLM_WORKERS=str(workers)),
        harness.workers(work, row, workers) as calls,
    ):
        before = calls[work](harness.peak_memory_bytes)
        n_bytes, seconds = calls[work](harness.run_once)
        peak = calls[work](harness.peak_memory_bytes)
    rate = n_bytes / seconds
    return {
        "work": work, "workers": workers, "seconds": seconds, "bytes_per_second": rate,
        "bytes_per_second_per_worker": rate / workers, "peak_memory_bytes": peak, "memory_at_start_bytes": before,
    }  # fmt: skip


def shard_hashes(folder: Path) -> dict[str, str]:
    """The sha256 of each shard in a folder, by its path there."""
    return {str(path.relative_to(folder)): sha256_of(path) for path in folder.rglob("*.parquet")}


def compare(source: str, vocabulary: str, n_bytes: int, n_files: int, works: Sequence[str]) -> dict[str, Any]:
    """Pin the files, and measure each of `works`, which are from WORKS.

    Raises RuntimeError if two runs on many files make different shards.
    """
    with tempfile.TemporaryDirectory(prefix="scratchlm-benchmark-") as name, s3_server():
        folder = Path(name)
        text, local, tokens = folder / "text.txt", folder / "local", folder / "tokens"
        write_files(source, n_bytes, n_files, local, text)
        start = time.perf_counter()
        bucket_manifest, local_manifest = folder / "s3" / MANIFEST, folder / MANIFEST
        write_manifest(bucket_manifest, pin([f"s3://{BUCKET}"], "text"))
        pin_seconds = time.perf_counter() - start
        write_manifest(local_manifest, files := pin([str(local)], "text"))
        shared = {"folder": tokens, "vocabulary": vocabulary, "n_bytes": text.stat().st_size}
        many = shared | {"split": "documents"}
        near = {"manifest": local_manifest, "threshold": THRESHOLD, "n_bytes": shared["n_bytes"]}
        kinds: dict[str, tuple[str, Callable[..., Run], dict[str, Any], Sequence[int]]] = {
            "bucket": (f"{n_files} files in a bucket", tokenizing, many | {"text": bucket_manifest}, (1, 2)),
            "local": (f"{n_files} local files", tokenizing, many | {"text": local_manifest}, (1, 2)),
            "near": ("their near duplicates", finding, near, (1, 2)),
            "one": ("one local file", tokenizing, shared | {"text": text, "split": "position"}, (os.cpu_count() or 1,)),
        }
        rows: list[dict[str, Any]] = []
        shards: dict[str, str] = {}
        for work in works:
            title, make, setup, numbers = kinds[work]
            for workers in numbers:
                rows.append(measured(make, title, workers, setup))
                if setup.get("split") == "documents":
                    found = shard_hashes(tokens)
                    shards = shards or found
                    if found != shards:
                        raise RuntimeError(f"{title}, {workers} workers: the shards differ from those of the first run")
    stored_bytes = sum(file.size_bytes for file in files)
    return {
        "text_bytes": shared["n_bytes"], "stored_bytes": stored_bytes, "files": n_files, "pin_seconds": pin_seconds,
        "rows": rows,
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    lines = [
        [
            row["work"], row["workers"], f"{row['seconds']:.3g} s", f"{row['bytes_per_second'] / 1e6:.3g} MB/s",
            f"{row['bytes_per_second_per_worker'] / 1e6:.3g} MB/s",
            harness.mebibytes(row["memory_at_start_bytes"]), harness.mebibytes(row["peak_memory_bytes"]),
        ]
        for row in found["rows"]
    ]  # fmt: skip
    text, stored = (f"{found[name] / 1e6:,.0f} MB" for name in ("text_bytes", "stored_bytes"))
    head = f"{text} of text, {stored} in {found['files']} files; pinned in {found['pin_seconds']:.3g} s\n"
    headers = ["work", "workers", "time", "rate of text", "per worker", "memory before", "at its peak"]
    return head + tabulate(lines, headers, disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=5000)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--work", choices=WORKS, action="append", help="measure only this (repeatable)")
    options = parser.parse_args()
    size, works = options.megabytes * 10**6, options.work or WORKS
    found = compare("tiny-shakespeare", "gpt2-124M", size, options.files, works)
    print(table(found))
    if not options.work:
        write_json(RESULTS / "corpus.json", found | about("benchmarks.corpus", os.cpu_count() or 1))


if __name__ == "__main__":
    main()
