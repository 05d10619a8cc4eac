"""Everything that reads bytes from outside, each with a small sound folder: what readers.py fuzzes.

A reader may return or raise a UserError. tests/unit/test_fuzz_corpus.py reads the inputs that fuzzing has kept.
"""

import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any, NamedTuple

import httpx
import pyarrow as pa

from scratchlm.data.byte_pairs import BytePairTokenizer, save_byte_pairs, train_byte_pairs
from scratchlm.data.corpus import text_chunks
from scratchlm.data.instructions import read_instructions
from scratchlm.data.labelled_texts import read_labelled_texts
from scratchlm.data.sources import read_member
from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.data.web import Refused
from scratchlm.formats import openai
from scratchlm.formats.classifier import load_classifier, save_classifier
from scratchlm.formats.gguf import save_gguf
from scratchlm.formats.gguf_file import GGUFFile
from scratchlm.formats.gguf_reader import load_gguf
from scratchlm.formats.gguf_tokenizer import read_gguf_tokenizer
from scratchlm.formats.huggingface import load_huggingface, save_huggingface
from scratchlm.formats.huggingface_tokenizer import load_huggingface_tokenizer, save_huggingface_tokenizer
from scratchlm.formats.native import load_gpt, save_gpt
from scratchlm.judge.ollama import OllamaJudge, ollama
from scratchlm.judge.overlap import normalise
from scratchlm.judge.prompt import load_prompt
from scratchlm.judge.protocol import OllamaParams
from scratchlm.judge.replies import Replies
from scratchlm.model.classifier import GPTClassifier
from scratchlm.model.config import GPTConfig
from scratchlm.model.gpt import build_model
from scratchlm.run.display import markdown, printable
from scratchlm.run.files import read_csv, read_json, read_table, write_table
from scratchlm.run.params import read_params
from stages import preflight
from tests import llama, smollm

REPOSITORY = Path(__file__).resolve().parents[2]
SAMPLE = REPOSITORY / "data" / "sample"


class Target(NamedTuple):
    """A reader of a folder, and the file in it that the fuzzer writes. seeds: sound contents of this file."""

    file: str
    read: Callable[[Path], object]
    seeds: list[bytes]


def member(folder: Path) -> None:
    try:
        for _ in read_member(folder / "a.zip", "SMSSpamCollection"):
            pass
    except Refused:
        pass


def reply_reader() -> Callable[[Path], object]:
    judge, body = OllamaJudge.__new__(OllamaJudge), SimpleNamespace(answer=b"")
    judge._params = OllamaParams(
        backend="ollama", prompt="anchored", model="m", host="http://localhost",
        timeout_seconds=1.0, retries=0, seed=0, context_tokens=256, max_new_tokens=16,
    )  # fmt: skip
    judge._prompt = load_prompt("anchored")
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=body.answer))
    judge._connection, judge._proxy, judge.n_at_once = body, None, 1  # type: ignore[assignment]
    judge._address, judge._counting = "http://localhost", Lock()
    judge._client = ollama.Client(host="http://localhost", transport=transport)

    def read(folder: Path) -> None:
        body.answer = (folder / "reply").read_bytes()
        judge._unanswered, judge._replies, judge.identity = 0, Replies(None), {}
        judgement = judge.score({"instruction": "a", "input": "", "output": "b"}, "c")
        assert judgement.score is None or 0 <= judgement.score <= 100
        json.dumps(printable(judgement.reason + judgement.raw_reply)).encode()

    return read


def shown(folder: Path) -> None:
    text = (folder / "text").read_bytes().decode("utf-8", "replace")
    assert normalise(normalise(text)) == normalise(text)
    assert "\x1b" not in printable(text) + markdown(text)


def make_folder(folder: Path) -> dict[str, Target]:
    """Write a sound folder of every kind; return the targets by name."""
    texts = (SAMPLE / "stories.txt").read_text(encoding="utf-8")[:20_000]
    save_byte_pairs(folder / "tokenizer", *train_byte_pairs([texts], 300))
    (folder / "words").mkdir()
    tokenizer = load_tokenizer(folder / "tokenizer")
    config = GPTConfig(
        vocab_size=300, context_length=4, n_layers=1, n_heads=2, emb_dim=4, dropout=0.0, qkv_bias=True, tied_head=True,
        initialisation="gpt2", attention="sdpa",
    )  # fmt: skip
    model = build_model(config, seed=1)
    save_gpt(folder / "native", model)
    classifier = GPTClassifier(build_model(config, seed=1), 2, "last")
    save_classifier(folder / "classifier", classifier, classes=("ham", "spam"), padded_tokens=4)
    save_huggingface(folder / "huggingface", model, tokenizer)  # type: ignore[arg-type]
    save_byte_pairs(folder / "smollm", *smollm.tiny_pairs())
    smollm_tokenizer: Any = load_tokenizer(folder / "smollm")
    save_huggingface_tokenizer(folder / "smollm", smollm_tokenizer, 4, "{{ messages }}")
    parts: dict[str, Any] = {
        "position": "rope", "norm": "rms", "feed_forward": "swiglu", "n_kv_heads": 1, "bias": False, "qkv_bias": False,
        "hidden_dim": 8, "vocab_size": smollm_tokenizer.vocab_size,
    }  # fmt: skip
    grouped = build_model(GPTConfig(**config.model_dump() | parts), seed=1)
    save_gguf(folder / "a.gguf", grouped, smollm_tokenizer, "{{ messages }}", storage="float16")
    save_gguf(folder / "scores.gguf", grouped, BytePairTokenizer(*llama.tiny_pairs("llama2")), storage="float16")
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("SMSSpamCollection", "ham\tHello\nspam\tWIN\n")
    shutil.copy(REPOSITORY / "metrics" / "plots" / "pretrain.csv", folder / "a.csv")
    write_table(
        folder / "a.parquet", [{"label": 1, "text": "Hello"}], pa.schema({"label": pa.int8(), "text": pa.string()})
    )
    labels = [{"label": 1, "text": "Hello"}, {"label": 10, "text": "you"}]
    write_table(folder / "t.parquet", labels, pa.schema({"label": pa.int8(), "text": pa.string()}))
    with tarfile.open(folder / "r.tar.gz", "w:gz") as archive_of_reviews:
        for name in ("train/neg/0_1.txt", "test/pos/1_9.txt"):
            member_of_it = tarfile.TarInfo(name)
            member_of_it.size = 3
            archive_of_reviews.addfile(member_of_it, io.BytesIO(b"bad"))
    (folder / "openai").mkdir()
    shutil.copy(SAMPLE / "gpt2-nano" / "hparams.json", folder / "openai")

    def seeds(*names: str) -> list[bytes]:
        return [(folder / name).read_bytes() for name in names]

    def in_folder(name: str, file: str, read: Callable[[Path], object]) -> Target:
        return Target(f"{name}/{file}", lambda where: read(where / name), seeds(f"{name}/{file}"))

    def labelled(file: str, sound: list[bytes], reading: Any = "strict") -> Target:
        return Target(file, lambda where: read_labelled_texts(where / file, reading, None), sound)

    profiles = [path.read_bytes() for path in sorted((REPOSITORY / "profiles").glob("*.yaml"))]
    entries = json.loads((SAMPLE / "instruction-data.json").read_text(encoding="utf-8"))[:3]
    message = {"message": {"content": '{"reason": "x", "score": 9}'}, "done_reason": "stop", "prompt_eval_count": 9}
    return {
        "instructions": Target("a.json", lambda f: read_instructions(f / "a.json"), [json.dumps(entries).encode()]),
        "json": Target("a.json", lambda f: read_json(f / "a.json"), [b'{"a": [1, 2.5e3, null, "\\u00e9"]}']),
        "messages": labelled("sms", [b"ham\tHello\nspam\tWIN\n"]),
        "messages-book": labelled("sms", [b'ham\t"Hello\nspam\tWIN"\n'], "book"),
        "labelled-csv": labelled("t.csv", [b'text,label\n"a, ""b""",x\n\nc,1\n', b"id,label,text\n1,-2,a\n2,10,b\n"]),
        "labelled-parquet": labelled("t.parquet", seeds("t.parquet")),
        "reviews": labelled("r.tar.gz", seeds("r.tar.gz")),
        "text": Target("a.txt", lambda f: list(text_chunks(f / "a.txt")), [b"Sara was \xc3\xa9 here.\n"]),
        "zip": Target("a.zip", member, seeds("a.zip")),
        "csv": Target("a.csv", lambda f: read_csv(f / "a.csv"), seeds("a.csv")),
        "parquet": Target("a.parquet", lambda f: read_table(f / "a.parquet"), seeds("a.parquet")),
        "params": Target("p.yaml", lambda f: read_params(f / "p.yaml", preflight.Params, whole=True), profiles),
        "encoder": in_folder("tokenizer", "encoder.json", load_tokenizer),
        "merges": in_folder("tokenizer", "vocab.bpe", load_tokenizer),
        "settings": in_folder("smollm", "settings.json", load_tokenizer),
        "huggingface-tokenizer": Target(
            "smollm/tokenizer.json",
            lambda f: load_huggingface_tokenizer(f / "smollm"),
            seeds("smollm/tokenizer.json") + [json.dumps(llama.tokenizer_json(kind)).encode() for kind in llama.KINDS],
        ),
        "gguf-tokenizer": Target(
            "a.gguf", lambda f: read_gguf_tokenizer(GGUFFile(f / "a.gguf")), seeds("a.gguf", "scores.gguf")
        ),
        "words": Target(
            "words/words.json", lambda f: load_tokenizer(f / "words"), [b'["a", "<|endoftext|>", "<|unk|>"]']
        ),
        "native-config": in_folder("native", "config.json", load_gpt),
        "native-weights": in_folder("native", "model.safetensors", load_gpt),
        "classifier-config": in_folder("classifier", "config.json", load_classifier),
        "huggingface-config": in_folder("huggingface", "config.json", load_huggingface),
        "huggingface-weights": in_folder("huggingface", "model.safetensors", load_huggingface),
        "huggingface-vocab": in_folder("huggingface", "vocab.json", load_huggingface_tokenizer),
        "huggingface-merges": in_folder("huggingface", "merges.txt", load_huggingface_tokenizer),
        "gguf": Target("a.gguf", lambda f: load_gguf(GGUFFile(f / "a.gguf")), seeds("a.gguf")),
        "hparams": in_folder("openai", "hparams.json", lambda f: openai._read_config(f, "nano")),
        "reply": Target("reply", reply_reader(), [json.dumps(message).encode()]),
        "display": Target("text", shown, ["C++ -5 3.14 e\u0301 @me #1 ไม่".encode()]),
    }
