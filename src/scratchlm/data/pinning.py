"""Pin a corpus of many files: read each once for its hash, and resume after an interruption. Check a manifest."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from scratchlm.data.addresses import Reader, file_system, files_at, well_formed
from scratchlm.data.catalogue import public_corpus
from scratchlm.data.documents import documents
from scratchlm.data.manifest import PINNED_FILE, PinnedFile, format_of, manifest_row, read_manifest, write_manifest
from scratchlm.data.sources import at_nearest
from scratchlm.run.errors import UserError
from scratchlm.run.files import append_log
from scratchlm.run.progress import Progress
from scratchlm.run.threads import Advance, in_threads

FILES_AT_ONCE = 8  # read to be hashed: the network is the limit


def pin(addresses: Sequence[str], column: str, manifest: str = "", kept: Path | None = None) -> list[PinnedFile]:
    """Read every file that the addresses lead to, several at once, and return them in the order of their addresses.

    column: the one that holds the text in tables. manifest: its path, which is no file of the corpus. kept: a manifest
    of the files read so far; a run after an interruption does not read those again whose size is the same.
    Raises UserError if there is no file, or for one that is no text or cannot be read.
    """
    sizes: dict[str, int] = {}
    for _, found in in_threads(FILES_AT_ONCE, _sizes, dict.fromkeys(addresses), lambda _: None):
        sizes |= found
    if sizes.pop(manifest, None) is not None and not sizes:
        raise UserError(f"{manifest} is the manifest itself; name the files of the corpus, or another --output")
    columns = {address: None if format_of(address).startswith("txt") else column for address in sorted(sizes)}

    def pinned(address: str, advance: Advance) -> PinnedFile:
        with at_nearest(address, lambda near: Reader(near, advance)) as reader:
            for _ in reader.blocks():
                pass
        file = PinnedFile(address, reader.n_bytes, reader.digest.hexdigest(), format_of(address), columns[address])
        if reader.may_be_cut:
            _refuse_cut(file, advance)
        return file

    done = _read_before(kept, sizes)
    n_done = sum(file.size_bytes for file in done.values())
    with Progress("pin", sum(sizes.values()), n_done, "B") as bar:
        if done:
            bar.note(f"{len(done)} of {len(sizes)} files were read before")
        todo = [address for address in columns if address not in done]
        for address, file in in_threads(FILES_AT_ONCE, pinned, todo, bar.update):
            done[address] = file
            if kept:
                append_log(kept, manifest_row(file))
    return [replace(done[address], column=columns[address]) for address in columns]


def _refuse_cut(file: PinnedFile, advance: Advance) -> None:
    """Raises UserError if a second read finds other bytes, or content that is not whole.

    Nothing else shows that a connection broke if the server states neither the size nor the end of the file.
    """
    try:
        for _ in documents(file, advance):
            pass
    except UserError as error:
        raise UserError(f"a server that states neither size nor end may have cut a file short: {error}") from None


def _sizes(address: str, _: Advance) -> dict[str, int]:
    """The files at an address with their sizes in bytes; 0 if the server does not say."""

    def listed(near: str) -> dict[str, int]:
        found = files_at(near)
        return found if near == address else {address: sum(found.values())}

    with well_formed(address):
        return at_nearest(address, listed)


def _read_before(kept: Path | None, sizes: dict[str, int]) -> dict[str, PinnedFile]:
    """Return the files that an interrupted run has read and that have these sizes; delete the others from kept."""
    if kept is None:
        return {}
    found = {}
    for line in kept.read_bytes().splitlines() if kept.exists() else ():
        with suppress(ValidationError):  # of a line that a full disk has cut
            file = PINNED_FILE.validate_json(line)
            if file.size_bytes == sizes.get(file.address):
                found[file.address] = file
    write_manifest(kept, list(found.values()))
    return found


def check_manifest(path: Path, split: str) -> None:
    """Raise UserError if a manifest is missing or damaged, if a package that it needs is missing, or for a split by
    position: files that are read independently have no position in a whole.
    """
    if not path.exists():
        public = public_corpus(path.as_posix())
        raise UserError(
            f"sources.corpus.manifest is {path}, which does not exist; write it with `scratchlm sources pin "
            f"{public.name if public else f'ADDRESS --output {path}'}`"
        )
    addresses = [file.address for file in read_manifest(path) if "://" in file.address]
    for address in {address.partition("://")[0]: address for address in addresses}.values():
        file_system(address)
    if split == "position":
        raise UserError(
            "tokenize.corpus.split is position, but sources.corpus is a manifest, whose files are read independently; "
            "set it to documents"
        )
