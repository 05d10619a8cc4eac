"""Projects that `scratchlm init` makes of this repository's last commit; tests/pipeline/test_own_data.py builds one."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from scratchlm.cli import init
from scratchlm.cli.init import TAKEN, origin
from scratchlm.compare.git import git
from tests.clones import AUTHOR, REPOSITORY
from tests.commands import scratchlm
from tests.pages import blocks

WRITTEN = {".dvc/config", "README.md", "params.yaml"}


@pytest.fixture(scope="module", autouse=True)
def author():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in AUTHOR.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def project(author, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "our models"
    folder.mkdir()
    done = scratchlm(REPOSITORY, "init", str(folder), "--profile", "laptop")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Next: cd '{folder}'" in done.stdout and [*folder.parent.iterdir()] == [folder]
    return folder


def tree(folder: Path) -> dict[str, str]:
    """The mode and hash of each file of the last commit, by path."""
    entries = (entry.split("\t") for entry in git(folder, "ls-tree", "-r", "-z", "HEAD").rstrip("\0").split("\0"))
    return {path: found for found, path in entries}


def test_a_project_is_a_repository_with_the_code_of_the_last_commit_and_without_its_results(project: Path) -> None:
    own, ours = tree(project), tree(REPOSITORY)
    changed = {path for path, found in own.items() if ours.get(path) != found}
    assert changed - {".dvc/config"} == {"README.md", "params.yaml"}
    assert own.keys() - WRITTEN == {path for path in ours if path.startswith(TAKEN)}
    assert not [path for path in own if path.startswith(("metrics", "tests", "docs", "dvc.lock", "data/code"))]
    assert git(project, "log", "--format=%an: %s", "main") == f"Someone: Start with scratchlm {commit(REPOSITORY)[:7]}"
    assert git(project, "status", "--porcelain", "--ignored") == ""
    assert (project / "params.yaml").read_bytes() == (REPOSITORY / "profiles" / "laptop.yaml").read_bytes()
    said = (project / "README.md").read_text(encoding="utf-8")
    assert said.startswith("# our models\n") and f"commit {commit(REPOSITORY)} of " in said and "$" not in said


def commit(folder: Path) -> str:
    return git(folder, "rev-parse", "HEAD")


def test_its_workflows_call_only_what_its_makefile_and_its_actions_have(project: Path) -> None:
    shown = subprocess.run(["make", "help"], cwd=project, capture_output=True, text=True, check=True).stdout
    targets = {*re.findall(r"make ([a-z-]+)", shown), ".venv/ready"}
    assert targets == {"help", "repro", "verify", "compare", "cluster", ".venv/ready"}
    files = [project / path for path in tree(project) if path.startswith((".github", ".gitlab"))]
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    called = re.findall(r"(?:- |  )(?:run: )?make (?:--silent )?([\w./-]+)", text)
    assert {"verify", "repro", "compare"} < set(called) <= targets
    assert all((project / path).is_dir() for path in re.findall(r"uses: (\./\S+)", text))


def test_of_a_changed_checkout_only_what_is_committed_and_no_data_is_taken(project: Path, tmp_path: Path) -> None:
    checkout = shutil.copytree(project, tmp_path / "checkout", symlinks=True)
    (checkout / "data" / "mine" / "private.csv").write_text("text,label\n")
    (checkout / "profiles" / "größer.yaml").write_bytes((checkout / "params.yaml").read_bytes())
    (checkout / ".gitlab-ci.yml").unlink()  # as the README of a project advises
    git(checkout, "add", "--all")
    git(checkout, "commit", "--quiet", "--message", "Add data")
    with (checkout / "dvc.yaml").open("a") as file:
        file.write("# changed\n")
    (checkout / "src" / "new.py").write_text("")
    done = scratchlm(checkout / "data", "init", "../../second", "--profile", "größer")
    assert "Uncommitted changes were not taken: dvc.yaml, src/new.py\n" in done.stdout, done.stderr
    first, second = tree(project), tree(tmp_path / "second")
    assert {path for path in first.keys() | second.keys() if first.get(path) != second.get(path)} == {
        ".gitlab-ci.yml", "README.md", "profiles/größer.yaml",
    }  # fmt: skip
    assert f"commit {commit(checkout)} of scratchlm; " in (tmp_path / "second" / "README.md").read_text()


@pytest.mark.parametrize(
    ("remotes", "where"),
    [
        ({"upstream": "https://someone:se@cret@git.example.org/our/s.git?key=1"}, "https://git.example.org/our/s.git"),
        ({"a": "/srv/other", "origin": "git@git.example.org:our/s.git"}, "git@git.example.org:our/s.git"),
        ({"origin": "/srv/s"}, "scratchlm"),
        ({"origin": "file:///srv/s"}, "scratchlm"),
    ],
)
def test_the_origin_is_an_address_without_a_password(tmp_path, remotes, where) -> None:
    git(tmp_path, "init", "--quiet")
    for name, address in remotes.items():
        git(tmp_path, "remote", "add", name, address)
    assert origin(tmp_path, "abc") == f"commit abc of {where}"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["full"], "full exists and is no empty folder; name another one, or remove it"),
        (["full/file"], "full/file exists and is no empty folder"),
        (["checkout/data/new"], "is in the checkout .*checkout; name one outside of it, such as .*/mine"),
        (["new", "--profile", "huge"], "--profile is 'huge', but the profiles are ablations, .*; name one of them"),
        (["a:b"], "a:b holds ':', on which verify and build fail; name another folder"),
        (["{new}"], r"holds '{', on which DVC or git fails; rename that folder"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_everything_as_it_was(project, tmp_path, words, sentence) -> None:
    checkout = tmp_path / "checkout"
    git(tmp_path, "clone", "--quiet", "--shared", str(project), str(checkout))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    done = scratchlm(checkout, "init", f"../{words[0]}", *words[1:])
    assert done.returncode == 1 and re.search(sentence, done.stderr) and done.stderr.count("\n") == 1, done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_what_comes_into_the_folder_meanwhile_is_kept_and_what_a_killed_call_left_is_not(
    project, tmp_path, monkeypatch
) -> None:
    theirs, left = (tmp_path / f".new.{name}.tmp" for name in ("12345678", "abcdefgh"))

    def written_late(new: Path, name: str, origin: str) -> None:
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "file").write_text("mine")
        theirs.mkdir()
        shutil.copytree(new.parent, left)  # as after a kill at this point
        init._delete_left(tmp_path / "new")
        assert new.exists() and theirs.exists() and not left.exists()

    monkeypatch.setattr(init, "_write_own", written_late)
    done = scratchlm(project, "init", str(tmp_path / "new"))
    assert done.stderr == f"scratchlm: {tmp_path / 'new'}: directory not empty; correct that and run this again\n"
    assert {path.name for path in tmp_path.rglob("*")} == {"new", "file", theirs.name}


def test_a_checkout_and_a_git_that_knows_its_user_are_needed(project, tmp_path, monkeypatch) -> None:
    def refusal(folder: Path) -> str:
        done = scratchlm(folder, "init", str(tmp_path / "new"))
        assert done.returncode == 1 and not [path for path in tmp_path.iterdir() if "new" in path.name]
        return done.stderr

    assert "is in no git repository; run scratchlm in a clone of the project" in refusal(tmp_path)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "Other work")
    assert f"{tmp_path} is no checkout of scratchlm; run this in the top folder of one" in refusal(tmp_path)
    for name in AUTHOR:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    for name, value in {"COUNT": "1", "KEY_0": "user.useConfigOnly", "VALUE_0": "true"}.items():
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    assert "git does not know whom to name in the first commit" in refusal(project)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert "git is not on PATH; install it" in refusal(project)


def test_a_project_takes_newer_code_with_the_commands_of_the_page(project: Path, tmp_path: Path) -> None:
    page = REPOSITORY / "docs" / "own-data.md"
    (text,) = [block.text for block in blocks(page) if "git restore" in block.text]
    checkout, own = (shutil.copytree(project, tmp_path / name, symlinks=True) for name in ("checkout", "own"))
    (checkout / "src" / "scratchlm" / "compare" / "seeds.py").unlink()
    (checkout / "stages" / "new.py").write_text("")
    git(checkout, "add", "--all")
    git(checkout, "commit", "--quiet", "--message", "Newer code")
    (address,) = re.findall(r"https://\S+", text)
    script = text.replace(address, f"'{checkout}'").partition("dvc repro")[0]
    subprocess.run(["bash", "-e", "-c", script], cwd=own, check=True)
    git(own, "commit", "--quiet", "--message", "Newer code")
    assert tree(own) == tree(checkout)
