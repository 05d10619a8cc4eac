"""A revision's results into DVC's cache, without a change to the workspace: what a comparison needs."""

import os
import sys
from pathlib import Path

from dvc.repo import Repo

from scratchlm.compare.clone import snapshot
from scratchlm.compare.git import find_commit, git, run_dvc
from scratchlm.run.errors import UserError

RESULTS = ("dvc.lock", "metrics")


def build(root: Path, revision: str) -> str:
    """Run `dvc repro` in a clone of `revision`; the name of a revision that has all of its results.

    That is `revision` if it was committed as built: then nothing is computed that the cache, or the default remote,
    holds. Else it is a new commit on top, which no branch has and git drops in the end.
    What DVC and the stages say goes to standard error. Raises UserError if a stage fails.
    """
    commit = find_commit(root, revision)
    print(f"building {revision} ({commit[:7]})", file=sys.stderr, flush=True)
    with snapshot(root, revision) as copy:
        with Repo(os.fspath(copy)) as repo:
            from_remote = ["--pull"] if repo.config["core"].get("remote") else []
        if run_dvc(copy, "repro", *from_remote)[0]:
            raise UserError(
                f"{revision} cannot be built; what it said stands above: correct that, then call this again"
            )
        git(copy, "add", "--all", "--", *RESULTS)
        if not git(copy, "status", "--porcelain", "--", *RESULTS):
            return revision
        git(copy, "commit", "--quiet", "--message", f"Build {revision}")
        git(root, "fetch", "--quiet", "--no-write-fetch-head", os.fspath(copy), "HEAD")
        return git(copy, "rev-parse", "HEAD")
