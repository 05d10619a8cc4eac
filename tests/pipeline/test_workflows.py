"""The commands of two jobs of the workflow of the results, run for real."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.clones import REPOSITORY, commit, environment, fork_in, lend_environment, run, set_parameter

JOBS = yaml.safe_load((REPOSITORY / ".github/workflows/results.yml").read_text(encoding="utf-8"))["jobs"]
# None of them may change a byte of what verify builds again
CIRCUMSTANCES = {"PYTHONHASHSEED": "77", "LC_ALL": "C", "TZ": "Asia/Tokyo", "OMP_NUM_THREADS": "2"}


def scripts(job: str, event: str) -> list[str]:
    """The commands of a job's steps on an event."""
    steps = [step for step in JOBS[job]["steps"] if step.get("if", event).endswith((event, f"'{event}'"))]
    return [step["run"] for step in steps if "run" in step]


@pytest.fixture
def checkout(built, tmp_path) -> Path:
    """A pull request's folder after the actions before the first step: checkout, .venv and DVC's cache."""
    base = shutil.copytree(built, tmp_path / "base", symlinks=True)
    run(base, "git", "checkout", "-q", "-B", "main")
    run(tmp_path, "git", "clone", "-q", str(base), "checkout")
    checkout = tmp_path / "checkout"
    shutil.copytree(base / ".dvc" / "cache", checkout / ".dvc" / "cache")
    lend_environment(checkout)
    return checkout


def run_job(job: str, event: str, checkout: Path, **variables: str) -> dict[str, Path]:
    """Run a job's commands as the runner does; return the files that it lets them write to."""
    files = {name: checkout.parent / name for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    given = variables | {name: str(path) for name, path in files.items()}
    given |= {"GITHUB_BASE_REF": "main", "RUNNER_TEMP": str(checkout.parent)}
    may_fail = [step["run"] for step in JOBS[job]["steps"] if step.get("continue-on-error")]
    for script in scripts(job, event):
        command = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", script]
        done = subprocess.run(command, cwd=checkout, env=environment(checkout, **given), capture_output=True, text=True)
        assert done.returncode == 0 or script in may_fail, done.stdout[-3000:] + done.stderr[-3000:]
    return files


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="make works in a virtual environment")
def test_the_jobs_run_in_a_clone_and_rebuild_the_same_bytes_under_other_circumstances(checkout):
    verify, last = scripts("rebuild", "push")
    assert last == "make repro" and "make --silent verify" in verify
    files = run_job("rebuild", "push", checkout, **CIRCUMSTANCES)
    said = r"```text\n.*\nHEAD \(\w{7}\): \d+ identical\.\nVerified\.\n```\n"
    assert re.fullmatch(said, files["GITHUB_STEP_SUMMARY"].read_text(), re.DOTALL)
    files["GITHUB_STEP_SUMMARY"].unlink()
    assert run(checkout, "git", "status", "--porcelain").stdout == ""

    set_parameter(checkout, "judge.controls", 3)
    commit(checkout, "Fewer controls, and the results not rebuilt")
    fork_in(checkout)
    files = run_job("compare", "pull_request", checkout)
    table = files["GITHUB_STEP_SUMMARY"].read_text()
    assert "origin/main" in table
    assert "judge" in table
    assert files["GITHUB_OUTPUT"].read_text() == f"table<<END_OF_TABLE\n{table}END_OF_TABLE\n"
    assert run(checkout, "git", "status", "--porcelain").stdout == ""
    assert not list((checkout / ".scratchlm").glob("scratchlm-clone-*"))
