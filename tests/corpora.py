"""Corpora of several files in every format, and an S3 server that counts what is read and can hold an answer back."""

import gzip
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Event, Thread
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
from moto.server import DomainDispatcherApplication, create_backend_app
from s3fs import S3FileSystem
from werkzeug.serving import make_server

from scratchlm.data.byte_pairs import END_OF_TEXT
from scratchlm.data.corpus import CorpusParams

BUCKET = "texts"
S3 = {
    "AWS_ACCESS_KEY_ID": "someone",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
PARAMS = CorpusParams(split="documents", deduplicate="none", train_fraction=0.8, shard_tokens=1_000)


def content(documents: Sequence[str], kind: str) -> bytes:
    """A file of a format that holds the documents, in a column `body` where there are columns."""
    if kind == "parquet":
        file = io.BytesIO()
        pq.write_table(pa.table({"id": range(len(documents)), "body": documents}), file)
        return file.getvalue()
    rows = "".join(json.dumps({"body": document}) + "\n" for document in documents)
    plain = (END_OF_TEXT.join(documents) if kind.startswith("txt") else rows).encode()
    if kind.endswith("gz"):
        return gzip.compress(plain, mtime=0)
    return pa.compress(plain, codec="zstd", asbytes=True) if kind.endswith("zst") else plain


class Server:
    """reads: how often each path was fetched. held: a path whose answer waits for `release`."""

    def __init__(self) -> None:
        self.reads: Counter[str] = Counter()
        self.held, self.reached, self.release = "", Event(), Event()
        self._app = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] == "GET":
            self.reads[path] += 1
            if path == self.held:
                self.reached.set()
                assert self.release.wait(timeout=60)
        return self._app(environ, start_response)


@contextmanager
def s3_server() -> Iterator[tuple[Server, str]]:
    """A server with an empty bucket, and its address."""
    app = Server()
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    _client(address).create_bucket(Bucket=BUCKET)
    S3FileSystem.clear_instance_cache()  # which has the address of an earlier server
    try:
        yield app, address
    finally:
        app.release.set()
        server.shutdown()
        thread.join()
        server.server_close()


def put(address: str, name: str, body: bytes) -> None:
    """Write an object into the bucket."""
    _client(address).put_object(Bucket=BUCKET, Key=name, Body=body)


@cache
def _client(address: str) -> Any:
    keys = {"aws_access_key_id": S3["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": S3["AWS_SECRET_ACCESS_KEY"]}
    return boto3.client("s3", endpoint_url=address, region_name=S3["AWS_DEFAULT_REGION"], **keys)


def shards(folder: Path) -> dict[str, bytes]:
    """Every file of a corpus' tokens by its path in their folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
