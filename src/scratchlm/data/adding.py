"""Add one's own data to params.yaml: fetch what is at an address, check that it can be read, write the entry."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scratchlm.data.catalogue import own_source
from scratchlm.data.corpus import text_chunks
from scratchlm.data.instructions import read_instructions
from scratchlm.data.labelled_texts import read_labelled_texts
from scratchlm.data.manifest import PinnedSource
from scratchlm.data.own_data import COLUMNS, END_OF_DOCUMENT, OwnSource, write_own
from scratchlm.data.preferences import read_preferences
from scratchlm.data.sources import addresses_to_try, at_first, own_file
from scratchlm.data.tables import TABLES, table_rows
from scratchlm.data.transfer import Part
from scratchlm.data.web import Refused
from scratchlm.run.display import one_line
from scratchlm.run.errors import UserError
from scratchlm.run.files import only_file, sha256_of, temporary_folder
from scratchlm.run.yaml_editor import line_start, with_value

_PAGE = re.compile(rb"\s*<(!doctype html|html)\b", re.IGNORECASE)


def fetch_new(purpose: str, address: str, store: Path, mirror: str | None) -> Path:
    """Fetch a file whose hash is not known yet, and return where `own_paths` will look for it, below its sha256.

    Raises UserError if no address provides it, or if a web page is there instead.
    """
    source, file = own_source(purpose), own_file(purpose, address, "")
    with temporary_folder(store / source.name) as folder:
        part = Part(folder, file)
        try:
            at_first(addresses_to_try(source, file, mirror), part.receive)
        except Refused as reasons:
            remedy = "correct the address, or save it in data/mine"
            raise UserError(f"cannot get {file.name}: {reasons}; {remedy}") from None
        with part.path.open("rb") as content:
            if _PAGE.match(content.read(100)):
                raise UserError(f"{address} is a web page, not a file of data; give the address of the file itself")
        target = store / sha256_of(part.path) / source.name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        return part.path.replace(target)


def described(purpose: str, source: OwnSource, files: Sequence[Path], scratch: Path) -> str:
    """Read the files as download and tokenize do, and say what is in them: `120 texts of 2 classes (bad, good)`.

    scratch: an empty folder. Raises UserError naming the file, and the first row that is wrong.
    """
    for path in (each for each in files if each.suffix.lower() in TABLES):
        for name in COLUMNS[purpose]:
            theirs = source.columns.get(name, name)
            next(table_rows(path, {name: theirs}, f"name the column, as in --column {name}=NAME"))
    write_own(purpose, source, files, scratch)
    written = only_file(scratch)
    if purpose == "corpus":
        counts = [(chunk.count(END_OF_DOCUMENT), len(chunk)) for chunk in text_chunks(written)]
        ends, n_characters = (sum(each) for each in zip(*counts, strict=True))
        documents = f"{ends + 1:,} document{'s' * (ends > 0)}"
        return f"{documents}, {n_characters - ends * len(END_OF_DOCUMENT):,} characters"
    if purpose == "messages":
        texts, classes = read_labelled_texts(written, "strict", None)
        return f"{len(texts):,} texts of {len(classes)} classes ({', '.join(classes)})"
    rows: Sequence[Any] = (read_instructions if purpose == "instructions" else read_preferences)(written)
    return f"{len(rows):,} {purpose}"


def with_entry(text: str, purpose: str, source: OwnSource | PinnedSource, licence: str | None) -> str:
    """Return the text of a params.yaml that uses a source for a purpose, with its licence in a comment above.

    The comment of an earlier source of this purpose is removed.
    """
    entry, keys = source.model_dump(exclude_defaults=True), ("sources", purpose)
    edited = with_value(text, keys, entry, "params.yaml")
    start = line_start(edited, keys)
    above = re.sub(rf"(?m)^[ \t]*# licence of {purpose}: .*\n\Z", "", edited[:start])
    indent = re.match(r"[ \t]*", edited[start:])
    comment = f"{indent[0]}# licence of {purpose}: {one_line(licence)}\n" if licence and indent else ""
    return above + comment + edited[start:]


def licence_in(text: str, purpose: str) -> str | None:
    """Return the licence of a source in the comment that `with_entry` writes, or None if there is none."""
    found = re.search(rf"(?m)^[ \t]*# licence of {purpose}: (.*)\n[ \t]*{purpose}:", text)
    return found[1].strip() if found else None
