"""Put a revision's results into DVC's cache, without touching the workspace, so that it can be compared."""

import os
import sys
from pathlib import Path

from dvc.repo import Repo

from scratchlm.compare.clone import private_clone
from scratchlm.compare.git import find_commit, git, run_dvc
from scratchlm.compare.revision import LOCK
from scratchlm.run.errors import UserError


def build(root: Path, revision: str) -> str:
    """Run `dvc repro` in a clone of `revision`; return the name of a revision that has all of its results.

    This is `revision` itself if it was committed as built; what the cache or the default remote holds is then not
    computed again. Otherwise it is a new commit on top, which belongs to no branch, and which git deletes in time.
    The output of DVC and the stages goes to standard error. Raises UserError if a stage fails.
    """
    commit = find_commit(root, revision)
    print(f"building {revision} ({commit[:7]})", file=sys.stderr, flush=True)
    with private_clone(root, revision) as clone:
        with Repo(os.fspath(clone)) as repo:
            from_remote = ["--pull"] if repo.config["core"].get("remote") else []
        if run_dvc(clone, "repro", *from_remote)[0]:
            raise UserError(f"{revision} cannot be built; correct the error printed above, then run this again")
        results = (LOCK, "metrics")
        git(clone, "add", "--all", "--", *results)
        if not git(clone, "status", "--porcelain", "--", *results):
            return revision
        git(clone, "commit", "--quiet", "--message", f"Build {revision}")
        git(root, "fetch", "--quiet", "--no-write-fetch-head", os.fspath(clone), "HEAD")
        return git(clone, "rev-parse", "HEAD")
