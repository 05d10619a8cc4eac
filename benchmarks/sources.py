"""The real data of the rows (from the download stage's store, a mirror or the public address, verified by hash) and
the settings of the book's experiments: profiles/book.yaml.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml

from benchmarks.harness import REPOSITORY
from benchmarks.setting import Setting
from scratchlm.data.byte_pairs import BytePairTokenizer
from scratchlm.data.catalogue import CATALOGUE, VOCABULARY_FILES
from scratchlm.data.instructions import write_instructions
from scratchlm.data.messages import Messages, load_messages, write_messages
from scratchlm.data.sources import fetch
from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.run.context import Run
from scratchlm.run.files import read_splits
from scratchlm.run.params import Section, check_params
from scratchlm.run.resume import Checkpoint
from stages import tokenize

STORE = REPOSITORY / ".scratchlm" / "downloads"
Params = TypeVar("Params", bound=Section)
Splits = Mapping[str, list[dict[str, Any]]]


def source_file(source: str, name: str) -> Path:
    """A file of the catalogue. Raises UserError (SCRATCHLM_MIRROR names a mirror) if it is unavailable."""
    (file,) = (file for file in CATALOGUE[source].files if file.name == name)
    return fetch(CATALOGUE[source], file, STORE, os.environ.get("SCRATCHLM_MIRROR"))


def text_of(source: str) -> Path:
    """The one file of a source of the catalogue. Raises UserError as source_file."""
    (file,) = CATALOGUE[source].files
    return source_file(source, file.name)


def is_at_hand(source: str, name: str) -> bool:
    """Whether a file of the catalogue is in the download stage's store or in the mirror."""
    (file,) = (file for file in CATALOGUE[source].files if file.name == name)
    mirror = os.environ.get("SCRATCHLM_MIRROR", "")
    places = [STORE / source / name, Path(mirror) / source / (file.archive or name)]
    return mirror.startswith("http") or any(place.is_file() for place in places)


def tokenizer_of(vocabulary: str) -> BytePairTokenizer:
    folder = {source_file(vocabulary, name).parent for name in VOCABULARY_FILES}.pop()
    tokenizer = load_tokenizer(folder)
    assert isinstance(tokenizer, BytePairTokenizer)
    return tokenizer


def messages_of(source: str, vocabulary: str) -> Messages:
    """The SMS collection balanced, split and tokenized as the `tokenize` stage does it."""
    path, p = source_file(source, "SMSSpamCollection"), stage_params(tokenize.Params)
    with tempfile.TemporaryDirectory(prefix="scratchlm-benchmark-") as name:
        folder = Path(name) / "messages"
        write_messages(path, tokenizer_of(vocabulary), folder, p.tokenize.messages, p.seed, print)
        return load_messages(folder)


def instruction_splits(source: str, vocabulary: str) -> Splits:
    """The instructions split and tokenized as the `tokenize` stage does it."""
    path, p = source_file(source, "instruction-data.json"), stage_params(tokenize.Params)
    with tempfile.TemporaryDirectory(prefix="scratchlm-benchmark-") as name:
        folder = Path(name) / "instructions"
        write_instructions(path, tokenizer_of(vocabulary), folder, p.tokenize.instructions)
        return read_splits(folder)


def stage_params(section: type[Params], setting: Setting | None = None, **changes: Mapping[str, Any]) -> Params:
    """The parameters of a stage from profiles/book.yaml, by default in float32. changes: section -> key -> value."""
    return params_of(REPOSITORY / "profiles" / "book.yaml", section, setting or Setting(), **changes)


def params_of(path: Path, section: type[Params], setting: Setting, **changes: Mapping[str, Any]) -> Params:
    """The parameters of a stage from a file, in another setting and with changes as `stage_params` takes them.

    By PyYAML, which gives the same values of the profiles as DVC's parser, and is more often there on machines with a
    GPU.
    """
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    values |= setting.values()
    values |= {key: values[key] | change for key, change in changes.items()}
    return check_params(values, section, source=path.name)


@contextmanager
def started(stage: str) -> Iterator[Run]:
    """A run as a stage is given it; its log and its checkpoint are empty at first and deleted afterwards."""
    with tempfile.TemporaryDirectory(prefix="scratchlm-benchmark-") as folder:
        log = Path(folder) / "log.jsonl"
        yield Run(stage, log, Checkpoint(Path(folder) / "states", stage, stage, log))
