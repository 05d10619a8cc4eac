"""Read the tracked files of any revision through DVC, without touching the workspace."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import networkx
import pyarrow as pa
import pyarrow.parquet as pq
from dvc.exceptions import DvcException, NotDvcRepoError
from dvc.repo import Repo
from dvc.repo.index import Index
from dvc_data.index import DataIndexDirError

from scratchlm.compare.git import find_commit, git
from scratchlm.compare.processors import Arithmetic, recorded
from scratchlm.run.code import refuse_path
from scratchlm.run.errors import UserError, explained
from scratchlm.run.yaml_reader import parse_yaml

LOCK, PARAMETERS = "dvc.lock", "params.yaml"
INPUTS = (PARAMETERS, "dvc.yaml", "requirements.lock", "src", "stages")
RESULTS = (LOCK, "metrics")
WORKSPACE = "workspace"  # DVC's word for what is not committed yet
SHORT = 7


class MissingArtifact(UserError):
    """A file that a revision does not have, or that is in neither cache nor remote; why: also says how to get it."""

    def __init__(self, revision: str, paths: Iterable[str], why: str) -> None:
        super().__init__(f"{revision} lacks {', '.join(paths)}: {why}")
        self.revision, self.paths, self.why = revision, tuple(paths), why


class Revision:
    """The files that git and DVC track at one revision. A remote is read where the cache lacks a file.

    Methods that read a file raise MissingArtifact, with a sentence that says how to get it, if it cannot be read, and
    UserError if it is not in the expected format.
    name: as the user gave it. commit: its hash, None for the workspace. root: the project's folder.
    where: the name of the processor, if the results are of a build that was kept here.
    """

    def __init__(self, name: str, folder: Path = Path(), *, build: str = "", where: str = "") -> None:
        """name: a revision as git names it, an experiment, or `workspace`; folder: any folder of the project.

        build: the commit of a kept build, which is then read instead.
        Raises UserError if there is no such revision, no project, or a merge conflict in the workspace.
        """
        self.name, self.where = name, where
        self.commit: str | None = None
        try:
            self.root = Path(Repo.find_root(str(folder)))
            refuse_path(self.root)
            if name != WORKSPACE:
                self.commit = find_commit(self.root, name)
            elif unmerged := self._git("ls-files", "--unmerged").splitlines():
                path = unmerged[0].partition("\t")[2]
                raise UserError(f"the workspace has a merge conflict in {path}; resolve all, then run `dvc repro`")
            self._repo = Repo(str(self.root), rev=build or self.commit)
        except NotDvcRepoError:
            raise UserError(f"{folder.resolve()} is not in a clone of the project; run scratchlm inside one") from None

    def __str__(self) -> str:
        """The name with its commit: main (03c6b50), or main (03c6b50, built on AMD EPYC)."""
        commit = self.commit or self._committed()
        commit = commit[:SHORT] if commit else "not committed"
        details = [] if commit.startswith(self.name[:SHORT]) else [commit]
        details += [f"built on {self.where}"] if self.where else []
        return f"{self.name} ({', '.join(details)})" if details else self.name

    @property
    def rebuild(self) -> str:
        """The command that builds this revision."""
        return "`dvc repro`" if self.commit is None else f"`scratchlm build {self.name}`"

    @property
    def cache(self) -> Path:
        """The folder of the objects in DVC's local cache."""
        return Path(self._repo.cache.local.path)

    def read(self, path: str) -> bytes:
        """Return the content of a tracked file; path: from the project's root, with forward slashes."""
        try:
            return self._repo.dvcfs.read_bytes(f"/{path}")
        except Exception as error:  # also of a remote's client, which has a package of its own
            if explained(error) is None:
                raise
            raise MissingArtifact(self.name, [path], self._why(path, error)) from None

    def yaml(self, path: str) -> Any:
        """Return the content of a YAML file, numbers read as DVC reads them."""
        return parse_yaml(self.read(path).decode("utf-8"), f"{path} of {self.name}")

    def json(self, path: str) -> dict[str, Any]:
        """Return the content of a JSON file, which must be an object."""
        try:
            value = json.loads(self.read(path))
        except ValueError as error:
            raise UserError(f"{path} of {self.name} is not valid JSON ({error}); rebuild: {self.rebuild}") from None
        if not isinstance(value, dict):
            raise UserError(f"{path} of {self.name} is not an object of JSON; rebuild: {self.rebuild}")
        return value

    def table(self, path: str) -> pa.Table:
        try:
            # Not pq.read_table: it scans a dataset, whose threads may still run when the process ends. Then C++ aborts
            # it after everything was printed (apache/arrow issues 34314 and 39862)
            with pq.ParquetFile(pa.BufferReader(self.read(path))) as file:
                return file.read(use_threads=False)
        except pa.ArrowException as error:
            why = f"its copy in the cache or the remote is damaged ({error}); `scratchlm verify` names damaged copies"
            raise MissingArtifact(self.name, [path], f"{why}, {self.rebuild} rebuilds what was deleted") from None

    def metrics(self) -> dict[str, Any]:
        """Return each metrics file by its path in metrics/, without the ending: {"load_gpt2/nano": {...}, ...}.

        A file that no stage of the revision makes, as of a size that params.yaml no longer names, is left out.
        """
        with self.pipeline() as index:
            paths = [path.removeprefix("/") for path in sorted(self._repo.dvcfs.find("/metrics"))]
            made = {output.def_path for stage in index.stages for output in stage.outs if output.is_metric}
        files = [path for path in paths if path in made]
        return {path.removeprefix("metrics/").removesuffix(".json"): self.json(path) for path in files}

    @contextmanager
    def pipeline(self) -> Iterator[Index]:
        """Yield DVC's view of dvc.yaml and dvc.lock; an error of DVC within the block becomes a UserError."""
        try:
            yield self._repo.index
        except DvcException as error:
            raise UserError(
                f"cannot read the pipeline of {self.name} ({error}); correct its dvc.yaml, params.yaml or dvc.lock"
            ) from None

    def stages(self) -> list[str]:
        """Return the names of the stages, such as load_gpt2@nano, in the order of dvc.yaml."""
        with self.pipeline() as index:
            return [stage.name for stage in index.stages]

    def arithmetic(self, metrics: Mapping[str, Any]) -> dict[str, frozenset[Arithmetic]]:
        """Return for each file of metrics() the arithmetic of its stage and of all that this stage needs."""
        with self.pipeline() as index:
            graph = index.graph  # its edges lead from a stage to the stages that it needs
            needed = {
                stage.name: {stage.name, *(s.name for s in networkx.descendants(graph, stage))} for stage in graph
            }
        return {
            file: recorded(content for name, content in metrics.items() if name.replace("/", "@") in needed[stage])
            for file in metrics
            if (stage := file.replace("/", "@")) in needed
        }

    def _committed(self) -> str | None:
        """The last commit, if the inputs and results in the workspace are its own."""
        return None if self._git("status", "--porcelain") else find_commit(self.root, "HEAD")

    def _git(self, *words: str) -> str:
        """What git says of the inputs and results in the workspace."""
        return git(self.root, *words, "--", *INPUTS, *RESULTS)

    def _why(self, path: str, error: Exception) -> str:
        if isinstance(error, FileNotFoundError) and not self._repo.dvcfs.exists(f"/{path}"):
            return f"its pipeline has not made it; build it: {self.rebuild}"
        # What is missing is the file, or its folder's list of files
        if not isinstance(error, FileNotFoundError | DataIndexDirError):
            return f"reading failed: {explained(error)}, or rebuild: {self.rebuild}"
        remote = self._repo.config["core"].get("remote")
        searched = f"the remote {remote} lacks it or does not answer" if remote else "no remote is configured"
        remedy = f"run `dvc push --all-commits` where it was built and `dvc pull` here, or rebuild: {self.rebuild}"
        return f"not in the cache, and {searched}; {remedy}"


def recorded_hashes(entries: Iterable[Mapping[str, Any]] | None) -> dict[str, str]:
    """Return path -> md5 of the `deps` or `outs` of a stage in dvc.lock."""
    return {entry["path"]: entry.get("md5", "") for entry in entries or ()}
