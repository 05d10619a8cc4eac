"""A small repository of its own, with one artifact in three states."""

import shutil
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest

from scratchlm.compare.revision import MissingArtifact, Revision
from scratchlm.run.errors import UserError
from scratchlm.run.files import write_json, write_table
from tests.clones import IDENTITY, commit, run

TABLE = "data/numbers.parquet"
SCHEMA = pa.schema([("number", pa.int64())])
PIPELINE = """
stages:
  count:
    foreach: [of]
    do:
      cmd: count
      outs: [data/numbers.parquet]
      metrics:
        - metrics/count/${item}.json:
            cache: false
"""


def put(home: Path, number: int) -> None:
    write_table(home / TABLE, [{"number": number}], SCHEMA)
    write_json(home / "metrics/count/of.json", {"number": number})
    (home / "params.yaml").write_text(f"rate: {number}e-4\n")
    run(home, "dvc", "commit", "-f")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tag `one` holds 1, tag `two` 2, and 3 is not committed."""
    home = tmp_path_factory.mktemp("home")
    run(home, "git", "init", "-q")
    run(home, "dvc", "init", "-q")
    run(home, "dvc", "config", "core.analytics", "false")
    (home / "dvc.yaml").write_text(PIPELINE)
    (home / ".gitignore").write_text("/data\n")
    write_json(home / "metrics/count/left.json", {"number": 0})  # of no stage: it is no metric
    for number, tag in ((1, "one"), (2, "two")):
        put(home, number)
        commit(home, tag)
        run(home, "git", *IDENTITY, "tag", tag)
    put(home, 3)
    return home


@pytest.fixture
def there(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    return home


def state(home: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every file in the workspace."""
    files = [path for path in home.rglob("*") if path.is_file() and not {".git", "tmp"} & set(path.parts)]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.parametrize(("name", "number"), [("one", 1), ("HEAD", 2), ("HEAD~1", 1), ("two", 2), ("workspace", 3)])
def test_a_revision_has_its_own_files_whoever_tracks_them(there: Path, name: str, number: int) -> None:
    revision = Revision(name)
    assert revision.table(TABLE).to_pylist() == [{"number": number}]
    assert revision.metrics() == {"count/of": {"number": number}}
    assert revision.yaml("params.yaml") == {"rate": float(f"{number}e-4")}
    assert revision.stages() == ["count@of"]
    assert list(revision.yaml("dvc.lock")["stages"]) == ["count@of"]


def test_reading_leaves_workspace_and_git_as_they_are(there: Path) -> None:
    before = state(there), run(there, "git", "status", "--porcelain").stdout
    for name in ("one", "two", "workspace"):
        Revision(name).table(TABLE)
    assert (state(there), run(there, "git", "status", "--porcelain").stdout) == before


def test_any_folder_of_the_project_will_do(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(there / "metrics/count")
    assert Revision("one").table(TABLE).to_pylist() == [{"number": 1}]
    assert Revision("workspace").json("metrics/count/of.json") == {"number": 3}


def test_a_revision_is_called_by_its_name_and_commit(there: Path) -> None:
    sha = run(there, "git", "rev-parse", "one").stdout.strip()
    assert str(Revision("one")) == f"one ({sha[:7]})"
    assert str(Revision(sha[:7])) == sha[:7]
    assert str(Revision("workspace")) == "workspace (not committed)"
    assert Revision("one").commit == sha


@pytest.mark.parametrize("name", ["nothing", "HEAD~9", "", "HEAD:params.yaml"])
def test_an_unknown_revision_is_one_sentence(there: Path, name: str) -> None:
    with pytest.raises(
        UserError, match=f"^{name!r} is not a revision of this repository; name a branch, tag, commit or experiment "
    ):
        Revision(name)


def test_a_folder_without_a_project_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"is not in a clone of the project; run scratchlm inside one$"):
        Revision("HEAD")


def test_a_file_that_a_revision_never_had_is_one_sentence(there: Path) -> None:
    with pytest.raises(MissingArtifact) as error:
        Revision("one").read("data/letters.parquet")
    assert str(error.value) == (
        "one lacks data/letters.parquet: its pipeline has not made it; build it: `scratchlm build one`"
    )


def test_what_is_no_json_is_one_sentence(there: Path) -> None:
    with pytest.raises(
        UserError, match=r"^params.yaml of one is not valid JSON \(.*\); rebuild: `scratchlm build one`"
    ):
        Revision("one").json("params.yaml")


@pytest.fixture
def elsewhere(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone without any artifact."""
    subprocess.run(["git", "clone", "-q", str(home), str(tmp_path / "clone")], check=True)
    monkeypatch.chdir(tmp_path / "clone")
    return tmp_path / "clone"


def test_a_missing_artifact_is_a_sentence_that_says_how_to_get_it(elsewhere: Path) -> None:
    with pytest.raises(MissingArtifact) as error:
        Revision("one").table(TABLE)
    assert str(error.value) == (
        f"one lacks {TABLE}: not in the cache, and no remote is configured; run `dvc push --all-commits` where it was "
        "built and `dvc pull` here, or rebuild: `scratchlm build one`"
    )
    with pytest.raises(MissingArtifact, match="; run .* or rebuild: `dvc repro`$"):
        Revision("workspace").table(TABLE)


def test_an_artifact_is_read_from_a_remote_without_a_trace(home: Path, elsewhere: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    run(elsewhere, "dvc", "remote", "add", "-q", "-d", "--local", "store", str(store))
    with pytest.raises(MissingArtifact, match="not in the cache, and the remote store lacks it or does not answer; "):
        Revision("one").table(TABLE)
    shutil.copytree(home / ".dvc/cache/files", store / "files")
    before = state(elsewhere)
    for name, number in (("one", 1), ("two", 2), ("workspace", 2)):
        assert Revision(name).table(TABLE).to_pylist() == [{"number": number}]
    assert state(elsewhere) == before
    assert not (elsewhere / ".dvc" / "cache").exists()
