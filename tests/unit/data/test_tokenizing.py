"""Many files to token shards: the same bytes for any number of workers, after any interruption, in bounded memory."""

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from scratchlm.data import tokenizing
from scratchlm.data.byte_pairs import BytePairTokenizer, save_byte_pairs, train_byte_pairs
from scratchlm.data.corpus import CorpusParams, NearDuplicates
from scratchlm.data.documents import is_of_train
from scratchlm.data.manifest import FORMATS, MANIFEST, write_manifest
from scratchlm.data.pinning import pin
from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.data.tokenizing import tokenize_corpus, train_texts
from scratchlm.data.windows import Corpus
from scratchlm.run.errors import UserError
from scratchlm.run.resume import Checkpoint, delete_finished
from tests.clones import REPOSITORY
from tests.commands import interrupted
from tests.corpora import BUCKET, PARAMS, S3, Server, content, put, s3_server, shards
from tests.web import web_server

N_FILES = 24
PATH = f"{REPOSITORY / 'src'}{os.pathsep}{REPOSITORY}"


def stories(seed: int, n_documents: int) -> list[str]:
    draws = random.Random(seed)
    words = ["Sara", "saw", "red", "birds", "by", "the lake", "and", "Tim", "a dog;", "nobody", "knew", "why.\n"]
    return [" ".join(draws.choices(words, k=draws.randint(1, 60))) for _ in range(n_documents)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BytePairTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_byte_pairs(folder, *train_byte_pairs(stories(0, 100), 300))
    found = load_tokenizer(folder)
    assert isinstance(found, BytePairTokenizer)
    return found


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project in which each file of the corpus has a format of its own."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for number, kind in enumerate(FORMATS):
        Path(f"in/{number}.{kind}").write_bytes(content(stories(number, 60), kind))
    pin_all("in")


def pin_all(*addresses: str) -> None:
    write_manifest(Path(MANIFEST), pin(addresses, "body"))


def tokenized(
    tokenizer: BytePairTokenizer, checkpoint: Checkpoint | None = None, params: CorpusParams = PARAMS
) -> dict[str, bytes]:
    tokenize_corpus(Path(MANIFEST), tokenizer, Path("tokens"), params, checkpoint or Checkpoint())
    return shards(Path("tokens"))


def checkpoint(cache_key: str = "a" * 64) -> Checkpoint:
    return Checkpoint(Path(".scratchlm/resume/tokenize"), cache_key, "tokenize")


def test_each_document_is_followed_by_the_end_token_in_the_split_of_its_hash(tokenizer: BytePairTokenizer) -> None:
    tokenized(tokenizer)
    every = [document for number in range(len(FORMATS)) for document in stories(number, 60)]
    counts = Corpus(Path("tokens")).counts
    for split, texts in (
        ("train", [text for text in every if is_of_train(text.encode(), PARAMS.train_fraction)]),
        ("val", [text for text in every if not is_of_train(text.encode(), PARAMS.train_fraction)]),
    ):
        ids = [token for text in texts for token in [*tokenizer.encode(text), tokenizer.end_token_id]]
        assert Corpus(Path("tokens")).tokens(split).tolist() == ids
        n_bytes = sum(len(text.encode()) for text in texts)
        found = {"tokens": len(ids), "bytes": n_bytes, "documents": len(texts)}
        assert counts[split] == pytest.approx(found | {"bytes_per_token": n_bytes / len(ids)}, rel=1e-5)
        if split == "train":
            assert list(train_texts(Path(MANIFEST), PARAMS, Checkpoint(), Path("t"))) == texts


def test_a_long_document_is_encoded_in_pieces_to_the_same_tokens(
    tokenizer: BytePairTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tokenized(tokenizer)
    monkeypatch.setattr("scratchlm.data.corpus.CHUNK_CHARACTERS", 50)
    assert tokenized(tokenizer) == whole


def test_one_text_may_be_split_by_documents_too(tokenizer: BytePairTokenizer) -> None:
    texts = stories(7, 40)
    Path("story.txt").write_text("<|endoftext|>".join([*texts, *texts]))
    counts = tokenize_corpus(Path("story.txt"), tokenizer, Path("tokens"), PARAMS, Checkpoint())
    n_train = 2 * sum(is_of_train(text.encode(), PARAMS.train_fraction) for text in texts)
    assert (counts["train"]["documents"], counts["val"]["documents"]) == (n_train, 80 - n_train)
    Path("story.txt").write_text("One document.")
    with pytest.raises(
        UserError, match="^the (train|val) split of the corpus has no document; use a larger corpus, or"
    ):
        tokenize_corpus(Path("story.txt"), tokenizer, Path("none"), PARAMS, Checkpoint())
    assert not Path("none").exists()


def test_the_number_of_workers_changes_no_byte(tokenizer: BytePairTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for workers in ("1", "2", "5"):
        monkeypatch.setenv("SCRATCHLM_WORKERS", workers)
        found.append(tokenized(tokenizer))
    assert found[0] == found[1] == found[2]
    assert {name for name in found[0] if name.endswith("0.parquet")} == {
        f"{split}/{number:06d}-00000.parquet" for split in ("train", "val") for number in range(len(FORMATS))
    }
    assert "train/000000-00001.parquet" in found[0]  # of 1,000 tokens each


def test_a_failure_keeps_the_finished_files_and_damage_to_them_is_repaired(
    tokenizer: BytePairTokenizer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = tokenized(tokenizer)
    before, last = Path("in/6.parquet").read_bytes(), Path("in/6.parquet")
    last.write_bytes(before + b" ")
    monkeypatch.setenv("SCRATCHLM_WORKERS", "1")
    with pytest.raises(UserError, match="^in/6.parquet has .* bytes, but .* are pinned; restore the file"):
        tokenized(tokenizer, checkpoint())
    assert shards(Path("tokens")) == expected  # what was there
    assert "position" not in capsys.readouterr().err
    parts = Path(".scratchlm/resume/tokenize", "a" * 64)
    assert sorted(path.name for path in parts.iterdir()) == [f"{number:06d}" for number in range(6)]

    shard = parts / "000003" / "val" / "00000.parquet"
    shard.write_bytes(b"damaged")
    (parts / "000004" / "counts.json").unlink()
    (parts / ".000005.abcdefgh.tmp").mkdir()
    last.write_bytes(before)
    for number in (0, 1, 2, 5):
        Path(f"in/{number}.{FORMATS[number]}").unlink()  # need not be read again
    assert tokenized(tokenizer, checkpoint()) == expected
    assert "tokenize: resuming from file 5 of 7" in capsys.readouterr().err

    with pytest.raises(UserError, match="in/0.txt: there is no such file"):
        tokenized(tokenizer, checkpoint("b" * 64))  # of other parameters
    assert "ignoring the parts of an unfinished run: its inputs, parameters or code" in capsys.readouterr().err
    checkpoint().finish()
    delete_finished("pretrain", ["tokenize", "pretrain"])
    assert not Path(".scratchlm/resume/tokenize").exists()


def test_what_stops_one_file_stops_the_others(tokenizer: BytePairTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = Event()

    def endless(file: object, advance: object) -> Iterator[str]:
        if "0" in file.address:  # type: ignore[attr-defined]
            assert begun.wait(timeout=60)
            raise UserError("a fault")
        while True:
            begun.set()
            advance(1)  # type: ignore[operator]
            yield "a"

    monkeypatch.setattr(tokenizing, "documents", endless)
    monkeypatch.setenv("SCRATCHLM_WORKERS", "2")
    with pytest.raises(UserError, match="^a fault$"):
        tokenized(tokenizer)


def test_of_similar_documents_too_with_any_number_of_workers_and_after_damage(
    tokenizer: BytePairTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree("in")
    Path("in").mkdir()
    first, second = ([text for text in stories(seed, 60) if len(text.split()) > 40] for seed in (1, 2))
    near = [f"Well, {text.upper()} The end." for text in first]
    contents = {"a.jsonl.zst": [*first, near[0]], "b.txt.gz": [second[0], *near], "c.parquet": [*near[::-1], *second]}
    contents["d.jsonl"] = []  # as parts of what a cluster has written may be
    for name, texts in contents.items():
        Path("in", name).write_bytes(content(texts, name.partition(".")[2]))
    pin_all("in")
    params, kept = PARAMS.model_copy(update={"deduplicate": NearDuplicates(near=0.8)}), [*first, *second]
    found = []
    for workers in ("1", "2"):
        monkeypatch.setenv("SCRATCHLM_WORKERS", workers)
        counts = tokenize_corpus(Path(MANIFEST), tokenizer, Path("tokens"), params, checkpoint(workers * 64))
        assert counts["removed_duplicates"] == 2 * len(first) + 2 > 20
        assert sum(counts[split]["documents"] for split in ("train", "val")) == len(kept)
        of_train = [text for text in kept if is_of_train(text.encode(), PARAMS.train_fraction)]
        assert list(train_texts(Path(MANIFEST), params, Checkpoint(), Path("t"))) == of_train
        found.append((counts, shards(Path("tokens"))))
    assert found[0] == found[1]

    Path("in/a.jsonl.zst").unlink()  # finished: neither its signatures nor its tokens are read from it again
    next(Path(".scratchlm/resume/tokenize", "2" * 64).glob("000001-*.bin")).write_bytes(b"damaged")
    assert tokenize_corpus(Path(MANIFEST), tokenizer, Path("tokens"), params, checkpoint("2" * 64)) == counts
    assert (counts, shards(Path("tokens"))) == found[1]


@pytest.mark.parametrize("workers", ["1", "3"])
def test_of_equal_documents_the_first_in_the_manifest_is_kept_and_the_others_are_counted(
    tokenizer: BytePairTokenizer, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    monkeypatch.setenv("SCRATCHLM_WORKERS", workers)
    shutil.rmtree("in")
    Path("in").mkdir()
    first, second = stories(1, 40), stories(2, 40)
    contents = {
        "a.jsonl": [*first, first[3]],
        "b.txt.gz": [*second[:20], *first],
        "bb.parquet": [],
        "c.parquet": [*second, first[3], "new"],
    }
    for name, texts in contents.items():
        Path("in", name).write_bytes(content(texts, name.partition(".")[2]))
    pin_all("in")
    every = [text for texts in contents.values() for text in texts]
    params, kept = PARAMS.model_copy(update={"deduplicate": "exact"}), list(dict.fromkeys(every))
    counts = tokenize_corpus(Path(MANIFEST), tokenizer, Path("tokens"), params, checkpoint())
    assert counts["removed_duplicates"] == len(every) - len(kept) == 62
    for split in ("train", "val"):
        texts = [text for text in kept if is_of_train(text.encode(), PARAMS.train_fraction) == (split == "train")]
        ids = [token for text in texts for token in [*tokenizer.encode(text), tokenizer.end_token_id]]
        assert Corpus(Path("tokens")).tokens(split).tolist() == ids
        if split == "train":
            assert list(train_texts(Path(MANIFEST), params, Checkpoint(), Path("t"))) == texts

    Path("in/a.jsonl").unlink()  # finished: neither its hashes nor its tokens are read from it again
    next(Path(".scratchlm").rglob("000001-*.bin")).write_bytes(b"damaged")
    assert tokenize_corpus(Path(MANIFEST), tokenizer, Path("again"), params, checkpoint()) == counts
    assert shards(Path("again")) == shards(Path("tokens"))


RUN = f"""
import sys
from pathlib import Path
from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.data.tokenizing import tokenize_corpus, train_texts
from scratchlm.run.errors import boundary
from scratchlm.run.resume import Checkpoint
from tests.corpora import PARAMS
source, state = Path("{MANIFEST}"), Checkpoint(Path(".scratchlm/resume/tokenize"), "a" * 64, "tokenize")
with boundary("tokenize"):
    if sys.argv[1:]:
        sum(map(len, train_texts(source, PARAMS, state, Path("tokens"))))
    tokenize_corpus(source, load_tokenizer(Path("tokenizer")), Path("tokens"), PARAMS, state)
"""


@pytest.mark.long
@pytest.mark.parametrize("words", [(), ("train_texts",)])  # read by other threads, and by the main one
def test_ctrl_c_does_not_wait_for_a_server_and_keeps_finished_files(
    tokenizer: BytePairTokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...]
) -> None:
    save_byte_pairs(Path("tokenizer"), tokenizer.pairs.encoder, tokenizer.pairs.merges)
    for name, value in {"NO_PROXY": "127.0.0.1", "SCRATCHLM_WORKERS": "1", "PYTHONPATH": PATH}.items():
        monkeypatch.setenv(name, value)
    with web_server() as server:
        server.files = {path: content(stories(1, 60), "parquet") for path in ("/a.parquet", "/slow.parquet")}
        pin_all(*(server.url(path[1:]) for path in server.files))
        done = interrupted(tmp_path, server, "/slow.parquet", "-c", RUN, *words)
    assert (done.returncode, done.stderr) == (1, "tokenize: interrupted\n")
    parts = Path(".scratchlm/resume/tokenize", "a" * 64)
    assert [path.name for path in parts.glob("0*")] == ([] if words else ["000000"])


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Server, str]]:
    with s3_server() as (app, address):
        yield app, address


@pytest.mark.long
def test_a_corpus_in_a_bucket_resumes_after_a_kill_without_reading_finished_files_again(
    server: tuple[Server, str], tokenizer: BytePairTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, address = server
    for name, value in (S3 | {"AWS_ENDPOINT_URL": address, "SCRATCHLM_WORKERS": "1"}).items():
        monkeypatch.setenv(name, value)
    for number in range(N_FILES):
        kind = ("txt.gz", "jsonl.zst", "parquet")[number % 3]
        put(address, f"web/{number:02d}.{kind}", content(stories(number, 30), kind))
    pin_all(f"s3://{BUCKET}/web")
    paths = sorted(path for path in app.reads if "/web/" in path)
    assert len(paths) == N_FILES
    expected = tokenized(tokenizer)
    monkeypatch.setenv("SCRATCHLM_WORKERS", "2")
    assert tokenized(tokenizer) == expected

    app.reads.clear()
    app.held = paths[13]
    save_byte_pairs(Path("tokenizer"), tokenizer.pairs.encoder, tokenizer.pairs.merges)
    variables = {**os.environ, "SCRATCHLM_WORKERS": "1", "PYTHONPATH": PATH}
    with subprocess.Popen([sys.executable, "-c", RUN], env=variables) as child:
        assert app.reached.wait(timeout=60)
        child.send_signal(signal.SIGKILL)
    app.release.set()
    before = {path: app.reads[path] for path in paths}
    assert all(before[path] for path in paths[:14]) and not any(before[path] for path in paths[14:])
    assert tokenized(tokenizer, checkpoint()) == expected
    assert {path for path in paths if app.reads[path] == before[path]} == set(paths[:13])

    put(address, "web/05.parquet", content(stories(99, 30), "parquet"))
    with pytest.raises(
        UserError, match=rf"^s3://{BUCKET}/web/05.parquet has .* are pinned; restore the file, or pin it"
    ):
        tokenized(tokenizer)


MEASURE = f"""
import os, resource, sys
from pathlib import Path
from scratchlm.data import corpus, documents, tokenizing
from scratchlm.data.manifest import write_manifest
from scratchlm.data.pinning import pin
from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.run.resume import Checkpoint
corpus.ROW_GROUP_TOKENS = corpus.CHUNK_CHARACTERS = documents.BLOCK_CHARACTERS = 1 << 16
os.environ["SCRATCHLM_WORKERS"] = "2"
tokenizer = load_tokenizer(Path("tokenizer"))
params = corpus.CorpusParams(split="documents", deduplicate="none", train_fraction=0.9, shard_tokens=10**9)
for size in sys.argv[1:]:
    child = os.fork()  # a process' peak counts from its fork
    if not child:
        Path(size).mkdir()
        write_manifest(Path(size, "{MANIFEST}"), pin([f"{{size}}.*"], "body"))
        tokenizing.tokenize_corpus(Path(size, "{MANIFEST}"), tokenizer, Path(size, "out"), params, Checkpoint())
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.long
def test_memory_does_not_grow_with_the_files(tokenizer: BytePairTokenizer) -> None:
    save_byte_pairs(Path("tokenizer"), tokenizer.pairs.encoder, tokenizer.pairs.merges)
    texts = stories(0, 12_000)  # 2 MB
    for name, n_times in (("small", 1), ("large", 6)):
        for kind in ("txt.gz", "jsonl.zst"):
            Path(f"{name}.{kind}").write_bytes(content(texts * n_times, kind))
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    command = [sys.executable, "-c", MEASURE, "small", "large"]
    peaks = subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout.split()
    assert int(peaks[1]) - int(peaks[0]) < 12_000, peaks  # KiB; the larger texts are 10,000 more, twice
