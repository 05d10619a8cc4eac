"""The catalogue: every source of data with its files, hashes, licence and addresses, read from sources.toml."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scratchlm.run.params import Section

GPT2Size = Literal["nano", "124M", "355M", "774M", "1558M"]
VOCABULARY_FILES = ("encoder.json", "vocab.bpe")
CHECKPOINT_WEIGHTS = "model.ckpt.data-00000-of-00001"


@dataclass(frozen=True)
class File:
    """One file, pinned by its content. archive: the name of the zip file of which it is a member."""

    name: str
    sha256: str | None
    size_bytes: int | None
    addresses: tuple[str, ...]
    archive: str | None = None


@dataclass(frozen=True)
class Source:
    """Files that belong together, with their licence and their authors."""

    name: str
    description: str
    licence: str
    citation: str
    files: tuple[File, ...]


def read_catalogue(text: str) -> dict[str, Source]:
    """Return the sources of a TOML text by name, in its order."""
    sources = {}
    for name, entry in tomllib.loads(text).items():
        addresses, files = entry.pop("addresses"), entry.pop("files")
        sources[name] = Source(name, **entry, files=tuple(_file(name, pin, addresses) for name, pin in files.items()))
    return sources


def _file(name: str, pin: dict, addresses: list[str]) -> File:
    found = tuple(address.replace("{file}", name) for address in addresses)
    return File(name, pin.get("sha256"), pin.get("size_bytes"), found, pin.get("archive"))


CATALOGUE = read_catalogue(Path(__file__).with_name("sources.toml").read_text(encoding="utf-8"))


class SourcesParams(Section):
    """The source for each purpose. vocabulary: the source of encoder.json and vocab.bpe."""

    corpus: Literal["sample-stories", "the-verdict", "tiny-shakespeare"]
    messages: Literal["sample-messages", "sms-spam"]
    instructions: Literal["sample-instructions", "instruction-data"]
    vocabulary: Literal["gpt2-nano", "gpt2-124M"]


def wanted_files(sources: SourcesParams, gpt2_sizes: list[GPT2Size]) -> list[tuple[Source, File]]:
    """Return every file that the parameters name, once, in the catalogue's order; of `vocabulary`, VOCABULARY_FILES."""
    whole = {sources.corpus, sources.messages, sources.instructions, *(f"gpt2-{size}" for size in gpt2_sizes)}
    return [
        (source, file)
        for source in CATALOGUE.values()
        for file in source.files
        if source.name in whole or (source.name == sources.vocabulary and file.name in VOCABULARY_FILES)
    ]
