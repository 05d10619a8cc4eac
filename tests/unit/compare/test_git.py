import os
from pathlib import Path

import pytest
from dvc.config import Config

from scratchlm.compare.clone import private_clone, write_config
from scratchlm.compare.git import (
    changed_files,
    clone_environment,
    fetch_refs,
    find_commit,
    git,
    run_each,
    unpack_commit,
)
from scratchlm.run.errors import UserError

FINE, WRONG = ["--version"], ["no-such-command"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "--quiet")
    git(folder, "config", "user.name", "Someone")
    git(folder, "config", "user.email", "someone@example.org")
    for number in range(3):
        git(folder, "commit", "--quiet", "--allow-empty", "--message", f"commit {number}")
    return folder


def test_what_a_commit_has_is_unpacked_and_what_differs_from_it_is_listed(repository: Path, tmp_path: Path) -> None:
    content = b"seed: 1  # caf\xe9"
    (repository / "params.yaml").write_bytes(content)
    git(repository, "add", "params.yaml")
    git(repository, "commit", "--quiet", "--message", "Add parameters")
    assert changed_files(repository, "params.yaml", "metrics") == []
    (repository / "params.yaml").write_text("seed: 2")
    (repository / "metrics").mkdir()
    (repository / "metrics" / "caf\u00e9.json").write_text("{}")
    assert changed_files(repository, "params.yaml", "metrics") == ["params.yaml", "metrics/caf\u00e9.json"]
    unpack_commit(repository, "HEAD", ("params.yaml", "metrics"), tmp_path / "copy")
    unpack_commit(repository, "HEAD~1", ("params.yaml", "metrics"), tmp_path / "none")
    assert [path.read_bytes() for path in (tmp_path / "copy").iterdir()] == [content]
    assert not (tmp_path / "none").exists()


def test_what_is_wrong_with_the_repository_is_said_and_not_that_there_is_no_revision(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=f"^{tmp_path} is in no git repository; run scratchlm in a clone"):
        find_commit(tmp_path, "HEAD")
    git(tmp_path, "init", "--quiet", "new")
    with pytest.raises(UserError, match="/new has no commit yet; run `git add -A` and `git commit` first$"):
        find_commit(tmp_path / "new", "main")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(UserError, match=r"dubious ownership .* git config --global --add safe.directory "):
        find_commit(repository, "HEAD")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="^git is not on PATH; install it"):
        find_commit(repository, "HEAD")


def test_a_shallow_clone_is_told_how_to_get_its_history(repository: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", "--depth", "1", f"file://{repository}", "shallow")
    with pytest.raises(UserError, match=r"'HEAD~1' is not a revision .*`git fetch --unshallow`"):
        find_commit(tmp_path / "shallow", "HEAD~1")
    with pytest.raises(UserError, match=r"gets new ones\)$"):
        find_commit(repository, "HEAD~9")


def test_the_users_hooks_do_not_run(repository: Path) -> None:
    hook = repository / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    git(repository, "commit", "--quiet", "--allow-empty", "--message", "again")


def test_fetching_from_a_clone_changes_no_tag_and_no_other_ref(repository: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", str(repository), "clone")
    git(tmp_path / "clone", "tag", "theirs")
    git(repository, "tag", "ours")
    for setting in ("fetch.prune", "fetch.pruneTags"):
        git(repository, "config", setting, "true")
    before = set(git(repository, "show-ref").splitlines())
    fetch_refs(repository, tmp_path / "clone", "+HEAD:refs/scratchlm/builds/x")
    (added,) = set(git(repository, "show-ref").splitlines()) - before
    assert added.endswith("refs/scratchlm/builds/x")
    assert before < set(git(repository, "show-ref").splitlines())


@pytest.mark.parametrize("name", ["é", "job@2", "back\\slash", "a,b #c", "日本"])
def test_the_cache_of_a_clone_may_be_in_any_folder(tmp_path: Path, name: str) -> None:
    clone, cache = tmp_path / name / "clone", tmp_path / name / "cache"
    (clone / ".dvc").mkdir(parents=True)
    (clone / ".dvc" / "config.local").write_text("['remote \"r\"']\n    url = s3://x\n    password = é\n", "utf-8")
    write_config(clone, cache, {"near": str(tmp_path / name)})
    settings = Config(str(clone / ".dvc"), validate=False)
    assert settings["cache"]["dir"] == str(cache)
    assert settings["remote"]["r"] == {"url": "s3://x", "password": "é"}
    assert settings["remote"]["near"]["url"] == str(tmp_path / name)


@pytest.mark.parametrize("name", ["{x}", "a${seed}", "x}", "%(a)s", "a:b", "new\nline", os.fsdecode(b"\xff")])
def test_a_path_on_which_dvc_fails_is_refused_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with (
        pytest.raises(UserError, match="holds .*, (on which DVC or git fails|which .* cannot); rename"),
        private_clone(tmp_path / name),
    ):
        pass


def test_a_name_that_is_not_utf_8_survives(repository: Path) -> None:
    (repository / os.fsdecode(b"a\xff")).touch()
    listed = git(repository, "ls-files", "-z", "--others")
    assert repository / listed.strip("\0") in repository.iterdir()


def test_the_users_mirrors_of_downloads_are_found_from_a_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "my project"
    (project / "wheels").mkdir(parents=True)
    (project / "ca.pem").touch()
    monkeypatch.chdir(project)
    given = {
        "SCRATCHLM_MIRROR": "wheels", "PIP_CERT": "ca.pem", "PIP_FIND_LINKS": "wheels https://example.org/a ./wheels",
        "PIP_INDEX_URL": f"https://example.org/{'a' * 300}", "PIP_CONFIG_FILE": "/dev/null", "PIP_EXTRA_INDEX_URL": "",
    }  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    uri = f"file://{tmp_path}/my%20project/wheels"
    expected = given | {
        "SCRATCHLM_MIRROR": str(project / "wheels"), "PIP_CERT": str(project / "ca.pem"),
        "PIP_FIND_LINKS": f"{uri} https://example.org/a {uri}",
    }  # fmt: skip
    assert {name: clone_environment(tmp_path)[name] for name in given} == expected


def test_a_training_in_a_clone_adds_nothing_to_the_users_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRATCHLM_TENSORBOARD", str(tmp_path))
    assert "SCRATCHLM_TENSORBOARD" not in clone_environment(tmp_path)


def folders(parent: Path, n: int) -> list[Path]:
    found = [parent / str(number) for number in range(n)]
    for folder in found:
        folder.mkdir()
    return found


def test_each_command_runs_in_a_clone_and_its_lines_say_which_it_is(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    clones = folders(tmp_path, 2)
    ended = list(run_each(clones, "seed", {5: FINE, 6: FINE, 7: FINE}))
    numbers, used, statuses = zip(*ended, strict=True)
    assert (sorted(numbers), {*used}, {*statuses}) == ([5, 6, 7], {*clones}, {0})
    lines = capfd.readouterr().err.splitlines()
    assert sorted(line.partition(": ")[0] for line in lines) == ["seed 5", "seed 6", "seed 7"]


@pytest.mark.long
def test_after_a_failure_none_is_started_and_those_beside_it_end(tmp_path: Path) -> None:
    (only,) = folders(tmp_path, 1)
    one_by_one = [(number, not status) for number, _, status in run_each([only], "seed", {1: FINE, 2: WRONG, 3: FINE})]
    assert one_by_one == [(1, True), (2, False)]
    at_once = {number: not status for number, _, status in run_each([only, tmp_path], "seed", {1: WRONG, 2: FINE})}
    assert at_once == {1: False, 2: True}
