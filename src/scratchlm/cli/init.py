"""`scratchlm init`: a project of one's own data, with the code of this checkout."""

import fcntl
import os
import re
import shlex
import shutil
from contextlib import suppress
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from scratchlm.cli.project import project_folder
from scratchlm.compare.git import changed_files, committed_files, find_commit, git, unpack_commit
from scratchlm.run.code import refuse_path
from scratchlm.run.display import say
from scratchlm.run.errors import UserError
from scratchlm.run.files import flush, stale_temporary_files, temporary_folder, write_text

# All that the pipeline needs of the repository: no tests, pages and benchmarks, and none of its results
TAKEN = (
    ".dvc/.gitignore", ".dvcignore", ".gitattributes", ".github/actions", ".github/workflows/results.yml", ".gitignore",
    ".gitlab-ci.yml", ".gitlab/results.yml", "LICENSE", "Makefile", "data/mine/.gitkeep", "data/sample", "dvc.yaml",
    "profiles", "pyproject.toml", "requirements-cluster.lock", "requirements-nodeps.lock", "requirements.lock", "src",
    "stages",
)  # fmt: skip
README = "src/scratchlm/cli/own_readme.md"
MARK = "made-by-scratchlm-init"  # a file in our temporary folder, locked while its process runs


def init(
    folder: Annotated[Path, typer.Argument(help="the new project: a folder that is empty or does not exist")],
    profile: Annotated[str, typer.Option(help="its params.yaml: a file of profiles/, without .yaml")] = "sample",
) -> None:
    """Make a project of your own with a copy of this code. It is a git repository, without our tests and results."""
    from scratchlm.compare.text import first_few

    root = project_folder().resolve()
    commit = find_commit(root, "HEAD")
    if git(root, "rev-parse", "--show-prefix") or not git(root, "ls-tree", commit, README):
        raise UserError(f"{root} is no checkout of scratchlm; run this in the top folder of one")
    profiles = [Path(name).stem for name in committed_files(root, commit, "profiles/")]
    if profile not in profiles:
        raise UserError(f"--profile is {profile!r}, but the profiles are {', '.join(profiles)}; name one of them")
    _refuse_place(folder, root)
    _delete_left(folder.resolve())
    with temporary_folder(folder.resolve()) as scratch, (scratch / MARK).open("w") as mark:
        fcntl.flock(mark, fcntl.LOCK_EX)
        new = scratch / "new"
        new.mkdir()
        git(new, "init", "--quiet", "--initial-branch", "main")
        _refuse_nameless(new)
        unpack_commit(root, commit, TAKEN, new)
        shutil.copyfile(new / "profiles" / f"{profile}.yaml", new / "params.yaml")
        _write_own(new, folder.resolve().name, origin(root, commit))
        git(new, "add", "--all", "--force")  # whatever the user's own .gitignore says
        git(new, "commit", "--quiet", "--message", f"Start with scratchlm {commit[:7]}")
        for path in filter(Path.is_file, new.rglob("*")):
            flush(path)
        new.rename(folder.resolve())  # refused unless the folder is still empty or missing
    say(f"{folder}: a git repository with the code of commit {commit[:7]} and the profile {profile}")
    if changed := changed_files(root, *TAKEN):
        say(f"Uncommitted changes were not taken: {first_few(changed)}")
    say(f"Next: cd {shlex.quote(os.fspath(folder))}, where README.md says how to add your data and build")


def _refuse_place(folder: Path, root: Path) -> None:
    target = folder.resolve()
    if target.is_relative_to(root):
        raise UserError(f"{folder} is in the checkout {root}; name one outside of it, such as {root.parent / 'mine'}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{folder} exists and is no empty folder; name another one, or remove it")
    if os.pathsep in os.fspath(target):
        raise UserError(f"{folder} holds {os.pathsep!r}, on which verify and build fail; name another folder")
    refuse_path(target)


def _delete_left(target: Path) -> None:
    """Delete the temporary folders of killed calls for this folder."""
    for left in stale_temporary_files(target):
        with suppress(OSError), (left / MARK).open() as mark:  # without it, the folder is not ours
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left)


def _refuse_nameless(repository: Path) -> None:
    try:
        git(repository, "var", "GIT_COMMITTER_IDENT")
    except UserError:
        raise UserError(
            "git does not know whom to name in the first commit; tell it with `git config --global user.name NAME` and "
            "`git config --global user.email ADDRESS`, then run this again"
        ) from None


def _write_own(new: Path, name: str, origin: str) -> None:
    readme = Template((new / README).read_text(encoding="utf-8"))
    write_text(new / "README.md", readme.substitute(name=name, origin=origin))
    write_text(new / ".dvc" / "config", "[core]\n    analytics = false\n")  # the checkout's may have a team's remote


def origin(root: Path, commit: str) -> str:
    """Return words for the commit and the address of its repository, unless that is a folder of this machine."""
    remote = min(git(root, "remote").splitlines(), key=lambda name: name != "origin", default=None)
    address = git(root, "remote", "get-url", remote) if remote else ""
    address = re.sub(r"(?<=//)[^/]*@|\?.*", "", address)  # without a password or a token
    is_elsewhere = re.search(r"^(?!file:)\w+://|^[\w.-]+@", address)
    return f"commit {commit} of {address if is_elsewhere else 'scratchlm'}"
