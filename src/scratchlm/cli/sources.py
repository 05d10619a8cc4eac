"""The sources of data: list the catalogue, and add one's own to params.yaml."""

import difflib
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from tabulate import tabulate

from scratchlm.run.display import say
from scratchlm.run.errors import UserError, boundary
from scratchlm.run.files import sha256_of, temporary_folder, write_text
from scratchlm.run.nested import value_at
from scratchlm.run.params import Section, check_params, load_yaml

if TYPE_CHECKING:
    from scratchlm.data.catalogue import Source
    from scratchlm.data.manifest import PinnedFile, PinnedSource

PARAMETERS = Path("params.yaml")
STORE = Path(".scratchlm/downloads")  # of the stage download
PINS = Path(".scratchlm/pins")  # hashes of the files that an interrupted `pin` has read
ALIGN = ("left", "left", "left", "right", "left")
WIDTHS = (None, None, None, None, 17)  # of the columns: 80 in all

app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def sources(context: typer.Context) -> None:
    """List the sources of data, or use your own with `add` and `pin`. Each is below the key that may name it."""
    if context.invoked_subcommand:
        return
    from scratchlm.data.adding import licence_in
    from scratchlm.data.catalogue import CATALOGUE, PUBLIC, Source, name_in, source_of

    def key(source: Source) -> str:
        return source.purpose or ("gpt2_sizes" if source.name.startswith("gpt2-") else "pretrained")

    def megabytes(source: Source) -> str:
        sizes = [file.size_bytes or 0 for file in source.files]
        return f"{'' if all(sizes) else 'over '}{sum(sizes) / 1e6:,.2f}" if any(sizes) else "unknown"

    params = load_yaml(PARAMETERS)

    def given(name: str, kind: type) -> Any:
        return value if isinstance(value := value_at(params, name), kind) else kind()  # preflight says what is wrong

    entries = given("sources", dict)
    chosen = {purpose: source_of(purpose, entry) for purpose, entry in entries.items()}
    used = {*(source.name for source in chosen.values()), *map(str, given("pretrained", list))}
    used |= {f"gpt2-{size}" for size in given("gpt2_sizes", list)}

    def use(source: Source) -> str:
        if source.name in used:
            return "yes"
        return "to pin" if source.name in PUBLIC and not Path(source.manifest).exists() else ""

    rows = [[key(it), it.name, use(it), megabytes(it), it.licence] for it in CATALOGUE.values()]
    own = [purpose for purpose, source in chosen.items() if source.name not in CATALOGUE]
    text = PARAMETERS.read_text("utf-8")
    rows += [[it, name_in(entries[it]), "yes", "", licence_in(text, it) or chosen[it].licence] for it in own]
    keys = list(dict.fromkeys(row[0] for row in rows))
    rows.sort(key=lambda row: keys.index(row[0]))
    head = ["key", "name", "in use", "MB", "licence"]
    say(tabulate(rows, head, disable_numparse=True, colalign=ALIGN, maxcolwidths=WIDTHS))
    say("\nA source of gpt2_sizes or pretrained may be sources.vocabulary, too.")
    say("Before you use a corpus marked `to pin`, run `scratchlm sources pin NAME`.")


@app.command()
def add(
    path: Annotated[str, typer.Argument(help="a file, a folder or a pattern below data/mine, or an address")],
    purpose: Annotated[
        Literal["corpus", "messages", "instructions", "preferences"], typer.Option("--as", help="what the data is")
    ],
    column: Annotated[
        list[str] | None, typer.Option(help="which column is which, as in text=review; may be repeated")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="of the data, for a comment beside the entry")] = None,
) -> None:
    """Check that your own data can be read, and make params.yaml use it. Nothing else in that file changes."""
    from scratchlm.data.adding import described, fetch_new, with_entry
    from scratchlm.data.own_data import FOLDER, own_files

    load_yaml(PARAMETERS)  # first: without it, this is the wrong folder
    columns = dict(_pair(each) for each in column or [])
    if "://" in path:
        unknown = "0" * 64
        _checked(purpose, {"path": path, "sha256": unknown, "columns": columns})  # before the download
        files = [fetch_new(purpose, path, STORE, os.environ.get("SCRATCHLM_MIRROR"))]
        source = _checked(purpose, {"path": path, "sha256": sha256_of(files[0]), "columns": columns})
    else:
        copy = f"copy it there: cp {shlex.quote(path)} {FOLDER}/"
        below = _below_data_mine(path, copy if Path(path).is_file() else "put the data there")
        source = _checked(purpose, {"path": below, "columns": columns})
        files = own_files(source)
    with temporary_folder(STORE / purpose) as scratch:
        found = described(purpose, source, files, scratch)
    text = PARAMETERS.read_bytes().decode("utf-8")
    edited = with_entry(text, purpose, source, licence)
    write_text(PARAMETERS.resolve(), edited)
    size = sum(file.stat().st_size for file in files)
    say(f"{source.path}: {found}, {size:,} bytes in {len(files)} file{'s' * (len(files) > 1)}")
    _show_change(text, edited)


@app.command()
def pin(
    addresses: Annotated[
        list[str],
        typer.Argument(
            metavar="ADDRESS...",
            help="a file, a folder or a pattern: a path, s3://, gs://, http(s)://; or the name of one public corpus",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="the manifest, below data/mine  [default: corpus.jsonl or NAME.jsonl]"),
    ] = None,
    column: Annotated[str | None, typer.Option(help="of tables: which one holds the text  [default: text]")] = None,
    licence: Annotated[str | None, typer.Option(help="of the texts, for a comment beside the entry")] = None,
) -> None:
    """Write the addresses and hashes of a corpus of many files. Make params.yaml use it; no file is copied."""
    from scratchlm.data.adding import with_entry
    from scratchlm.data.documents import check_readable
    from scratchlm.data.manifest import changes, write_manifest
    from scratchlm.data.own_data import FOLDER
    from scratchlm.data.pinning import pin as pinned
    from scratchlm.run.yaml_editor import with_value

    load_yaml(PARAMETERS)  # first: without it, this is the wrong folder
    if public := _public_corpus_of(addresses):
        addresses = [file.addresses[0] for file in public.files]
        output, column, licence = output or Path(public.manifest), column or public.column, licence or public.licence
    output = output or Path(FOLDER, "corpus.jsonl")
    source = _manifest_at(output, public)

    def edited(text: str) -> str:
        text = with_entry(text, "corpus", source, licence)
        return with_value(text, ("tokenize", "corpus", "split"), "documents", "params.yaml")

    edited(PARAMETERS.read_text("utf-8"))  # now rather than after hours of reading
    old = _old_files(output)
    kept = PINS / output.name
    with boundary("scratchlm", lambda: "interrupted; run this again to resume after the files that were read"):
        files = pinned(addresses, column or "text", source.manifest, kept)
        check_readable(files)
    text = PARAMETERS.read_bytes().decode("utf-8")
    write_manifest(output, files)
    write_text(PARAMETERS.resolve(), new := edited(text))
    kept.unlink(missing_ok=True)  # another `pin` of these files has ended
    n_bytes = sum(file.size_bytes for file in files)
    said = f" ({changes(old, files)})" if old else ""
    say(f"{source.manifest}: {n_bytes:,} bytes in {len(files)} file{'s' * (len(files) > 1)}{said}")
    _show_change(text, new)


def _public_corpus_of(addresses: list[str]) -> "Source | None":
    """The public corpus that is named, if any. Raises UserError for a misspelt one, and for addresses beside it."""
    from scratchlm.data.catalogue import PUBLIC

    for name in addresses:
        may_be_name = name.replace("-", "").isalnum() and name not in PUBLIC and not Path(name).exists()
        if may_be_name and (near := difflib.get_close_matches(name, PUBLIC, n=1)):
            raise UserError(f"{name} is neither a file nor a public corpus (did you mean {near[0]}?); correct the name")
    public = next((PUBLIC[name] for name in addresses if name in PUBLIC), None)
    if public and len(addresses) > 1:
        raise UserError(f"{public.name} is a public corpus, which is pinned alone; name only it, or only addresses")
    return public


def _manifest_at(output: Path, public: "Source | None") -> "PinnedSource":
    """The entry for a manifest. Raises UserError if it may not be there, or is that of another public corpus."""
    from scratchlm.data.catalogue import public_corpus
    from scratchlm.data.manifest import PinnedSource

    entry = {"manifest": _below_data_mine(str(output), "name another --output")}
    source: PinnedSource = check_params(entry, PinnedSource, source="--output", whole=True)
    if (owner := public_corpus(source.manifest)) and owner != public:
        raise UserError(f"{source.manifest} is the manifest of the public corpus {owner.name}; name another --output")
    return source


def _old_files(output: Path) -> "list[PinnedFile]":
    """The files that a manifest pinned before. Raises UserError if there is another file, which is not overwritten."""
    from scratchlm.data.manifest import read_manifest

    try:
        return read_manifest(output) if output.exists() else []
    except UserError as error:
        fault = str(error).rpartition("; ")[0]
        raise UserError(f"{fault}; it is not overwritten: remove it, or name another --output") from None


def _show_change(text: str, edited: str) -> None:
    old, new = text.splitlines(), edited.splitlines()
    changes = list(difflib.unified_diff(old, new, "params.yaml", "params.yaml", n=1, lineterm=""))
    say("\n".join(changes) if changes else "params.yaml has this entry already")


def _pair(column: str) -> tuple[str, str]:
    ours, is_pair, theirs = column.partition("=")
    if not (ours and is_pair and theirs):
        raise UserError(f"--column is {column!r}, but must be OURS=THEIRS, such as text=review; correct it")
    return ours, theirs


def _checked(purpose: str, entry: dict[str, Any]) -> Any:
    """The source of one's own data that an entry describes. Raises UserError if it would be refused in params.yaml."""
    from scratchlm.data.catalogue import SourcesParams

    params = load_yaml(PARAMETERS)
    given = params.get("sources") if isinstance(params, dict) else None
    values = {**(given if isinstance(given, dict) else {}), purpose: entry}

    class Whole(Section):
        sources: SourcesParams

    return check_params({"sources": values}, Whole, source="params.yaml", whole=True).sources.own[purpose]


def _below_data_mine(path: str, remedy: str) -> str:
    from scratchlm.data.own_data import FOLDER

    absolute = os.path.normpath(Path(path).absolute())
    if not Path(absolute).is_relative_to(Path(FOLDER).absolute()):
        raise UserError(f"{path or 'an empty path'} is not below {FOLDER}, whose content DVC follows; {remedy}")
    return Path(absolute).relative_to(Path.cwd()).as_posix()
