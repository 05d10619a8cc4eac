"""The tracked files of any revision, read through DVC without touching the workspace."""

import json
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.scm import RevError, resolve_rev

from scratchlm.run.errors import UserError
from scratchlm.run.params import parse_yaml

WORKSPACE = "workspace"  # DVC's word for what is not committed yet
SHORT = 7


class MissingArtifact(UserError):
    """A file that a revision does not have, or that neither cache nor remote holds; why: and how to get it."""

    def __init__(self, revision: str, paths: Iterable[str], why: str) -> None:
        super().__init__(f"{revision} lacks {', '.join(paths)}: {why}")
        self.revision, self.paths, self.why = revision, tuple(paths), why


class Revision:
    """What git and DVC track at one revision: nothing is checked out, a remote is read where the cache lacks a file."""

    def __init__(self, name: str) -> None:
        """name: whatever git takes for a commit, or `workspace`; any folder of the project may be the current one.

        Raises UserError if there is no such revision, or no project.
        """
        self.name = name
        try:
            self._repo = Repo(Repo.find_root())
            if name == WORKSPACE:
                self.commit = None
            elif not name or ":" in name:  # to git, HEAD:params.yaml names a file
                raise RevError(repr(name))
            else:
                self.commit = resolve_rev(self._repo.scm, name)
                self._repo = Repo(rev=self.commit)
        except RevError:
            raise UserError(
                f"{name!r} is no revision of this repository; name a branch, tag or commit "
                f"(`git branch --all` lists branches), or {WORKSPACE} for what is not committed"
            ) from None
        except DvcException as error:
            raise UserError(f"{error}; run scratchlm inside a clone of the project that git and DVC know") from None

    def __str__(self) -> str:
        """The name with what it stands for: main (03c6b50)."""
        stands_for = self.commit[:SHORT] if self.commit else "not committed"
        return self.name if stands_for.startswith(self.name[:SHORT]) else f"{self.name} ({stands_for})"

    @property
    def rebuild(self) -> str:
        """The command that builds this revision."""
        return "`dvc repro`" if self.commit is None else f"`git checkout {self.name} && dvc repro`"

    def read(self, path: str) -> bytes:
        """The content of a file that git or DVC tracks; path: from the project's root, with forward slashes.

        Raises MissingArtifact with a sentence that says how to get it.
        """
        try:
            return self._repo.dvcfs.read_bytes(f"/{path}")
        except FileNotFoundError:
            raise MissingArtifact(self.name, [path], self._why(path)) from None
        except (DvcException, OSError) as error:
            raise MissingArtifact(self.name, [path], f"reading failed ({error}); {self._how_to_get()}") from None

    def text(self, path: str) -> str:
        """A UTF-8 file. Errors as read."""
        return self.read(path).decode("utf-8")

    def yaml(self, path: str) -> Any:
        """A YAML file, numbers read as DVC reads them. Errors as read, and UserError if it is not YAML."""
        return parse_yaml(self.text(path), f"{path} of {self.name}")

    def json(self, path: str) -> Any:
        """A JSON file. Errors as read, and UserError if it is not JSON."""
        try:
            return json.loads(self.read(path))
        except ValueError as error:
            raise UserError(f"{path} of {self.name} is not valid JSON ({error}); rebuild: {self.rebuild}") from None

    def table(self, path: str) -> pa.Table:
        """A Parquet file. Errors as read."""
        return pq.read_table(pa.BufferReader(self.read(path)))

    def metrics(self) -> dict[str, Any]:
        """Each metrics file by its place in metrics/, without the ending: {"load_gpt2/nano": {...}, ...}."""
        paths = sorted(str(path).lstrip("/") for path in self._repo.dvcfs.find("/metrics"))
        return {
            str(PurePosixPath(path).relative_to("metrics").with_suffix("")): self.json(path)
            for path in paths
            if path.endswith(".json")
        }

    def stages(self) -> list[str]:
        """The names of the pipeline's stages (load_gpt2@nano for one of several) in dvc.yaml's order."""
        try:
            return [stage.name for stage in self._repo.index.stages]
        except DvcException as error:
            raise UserError(f"the pipeline of {self.name} cannot be read ({error}); correct its dvc.yaml") from None

    def _why(self, path: str) -> str:
        if not self._repo.dvcfs.exists(f"/{path}"):
            return f"its pipeline has not made it; if it does now, rebuild and commit: {self.rebuild}"
        remote = self._repo.config["core"].get("remote")
        searched = f"nor in the remote {remote}" if remote else "and no remote is configured"
        return f"not in the cache {searched}; {self._how_to_get()}"

    def _how_to_get(self) -> str:
        return f"run `dvc push --all-commits` where it was built and `dvc pull` here, or rebuild: {self.rebuild}"
