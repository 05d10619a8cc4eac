"""The workspace of a small project; tests/pipeline/test_revision.py reads what DVC tracks."""

from pathlib import Path

import pytest

from scratchlm.compare.git import git
from scratchlm.compare.revision import Revision
from scratchlm.run.errors import UserError
from scratchlm.run.files import write_json
from scratchlm.run.params import load_yaml
from scratchlm.verify.status import status
from tests.clones import AUTHOR

PIPELINE = "stages: {count: {cmd: count, metrics: [metrics/count.json: {cache: false}]}}\n"


def committed(message: str) -> str:
    git(Path(), "add", "--all")
    git(Path(), "commit", "--quiet", "--message", message)
    return git(Path(), "rev-parse", "HEAD")


@pytest.fixture(autouse=True)
def commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    for name, value in AUTHOR.items():
        monkeypatch.setenv(name, value)
    git(Path(), "init", "--quiet", "--initial-branch", "main")
    (tmp_path / ".dvc").mkdir()
    for name, text in {"dvc.yaml": PIPELINE, "dvc.lock": "schema: '2.0'\n", "params.yaml": "rate: 1\n"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / ".dvc" / "config").touch()
    (tmp_path / ".gitignore").write_text(".dvc/tmp\n")
    write_json(tmp_path / "metrics" / "count.json", {"number": 1})
    return committed("First")


def test_the_workspace_has_the_name_of_the_commit_until_an_input_or_a_result_changes(commit: str) -> None:
    Path("notes.txt").touch()
    assert str(Revision("workspace")) == f"workspace ({commit[:7]})"
    write_json(Path("metrics", "new.json"), {})
    assert str(Revision("workspace")) == "workspace (not committed)"


def test_an_unfinished_merge_is_one_sentence() -> None:
    for branch in ("left", "right"):
        git(Path(), "switch", "--quiet", "--create", branch, "main")
        Path("params.yaml").write_text(f"rate: {branch}\n")
        committed(branch)
    with pytest.raises(UserError):
        git(Path(), "merge", "--quiet", "left")
    with pytest.raises(
        UserError, match="^the workspace has a merge conflict in params.yaml; resolve all, then run `dvc"
    ):
        Revision("workspace")
    assert Revision("right").yaml("params.yaml") == {"rate": "right"}
    with pytest.raises(UserError, match="^params.yaml holds a merge conflict; keep one of its sides, or combine them$"):
        load_yaml(Path("params.yaml"))


def test_the_status_says_that_inputs_changed_after_the_build(commit: str) -> None:
    assert status(Path()) == f"Identical to the committed results of HEAD ({commit[:7]})."
    Path("params.yaml").write_text("rate: 2\n")
    assert status(Path()).endswith("), though params.yaml changed; run `dvc repro` unless you have since.")


def test_the_status_says_what_to_do_about_a_commit_without_results() -> None:
    git(Path(), "rm", "--quiet", "--cached", "metrics/count.json")
    git(Path(), "commit", "--quiet", "--amend", "--message", "First")
    assert status(Path()).endswith(") has no results to compare with; commit these.")
    Path("metrics", "count.json").unlink()
    assert status(Path()).endswith(") has no results to compare with; run `dvc repro`.")


def test_damaged_results_are_one_sentence() -> None:
    Path("dvc.lock").rename("away")
    assert status(Path()).startswith("dvc.lock is missing; `git checkout dvc.lock` restores that of HEAD (")
    Path("away").rename("dvc.lock")
    write_json(Path("metrics", "count.json"), [1])
    with pytest.raises(
        UserError, match="^metrics/count.json of workspace is not an object of JSON; rebuild: `dvc repro`"
    ):
        status(Path())
