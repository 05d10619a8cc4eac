"""The workflows for users' CI: what they call exists, and the commands of two jobs run for real."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dvc.cli.parser import get_main_parser

from scratchlm.cli.main import app
from tests.clones import REPOSITORY, commit, environment, run, set_parameter

WORKFLOW = yaml.safe_load((REPOSITORY / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
ACTION = yaml.safe_load((REPOSITORY / ".github/actions/environment/action.yml").read_text(encoding="utf-8"))
JOBS = WORKFLOW["jobs"]
STEPS = [*(step for job in JOBS.values() for step in job["steps"]), *ACTION["runs"]["steps"]]
MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
KNOWN_ACTIONS = {"actions/checkout", "actions/setup-python", "actions/cache", "actions/github-script"}


def scripts(job: str, event: str) -> list[str]:
    """What the steps of a job run on an event."""
    steps = [step for step in JOBS[job]["steps"] if step.get("if", event).endswith((event, f"'{event}'"))]
    return [step["run"] for step in steps if "run" in step]


def words_after(program: str, text: str) -> set[str]:
    """The first word that is no option after each call of a program."""
    return set(re.findall(rf"(?:^|[\s(;&|]){program}(?: --?[\w-]+)* ([\w./-]+)", text))


def test_every_make_target_that_a_step_runs_exists():
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, flags=re.MULTILINE)) | {".venv/ready"}
    called = words_after("make", "\n".join(step["run"] for step in STEPS if "run" in step))
    assert called == {"check", "test", "verify", "repro", "compare", ".venv/ready"}
    assert called <= targets


def test_every_command_behind_the_steps_exists():
    recipes = "\n".join(line for line in MAKEFILE.splitlines() if line.startswith("\t"))
    assert words_after("scratchlm", recipes) >= {"build", "compare"}
    assert words_after("scratchlm", recipes) <= {
        command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands
    }
    (commands,) = [action.choices for action in get_main_parser()._actions if action.dest == "cmd"]
    assert words_after("dvc", recipes) >= {"repro", "remote"}
    assert words_after("dvc", recipes) <= set(commands)


def test_steps_use_actions_that_everybody_knows_and_our_own():
    used = {step["uses"].split("@")[0] for step in STEPS if "uses" in step}
    assert used == KNOWN_ACTIONS | {"./.github/actions/environment"}


def test_only_the_job_that_runs_no_code_of_a_pull_request_may_write():
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert {name: job["permissions"] for name, job in JOBS.items() if "permissions" in job} == {
        "comment": {"pull-requests": "write"}
    }
    assert [next(iter(step)) for step in JOBS["comment"]["steps"]] == ["uses"]
    checkouts = [step for step in STEPS if step.get("uses", "").startswith("actions/checkout")]
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_what_the_caches_are_keyed_by_exists():
    keys = [step["with"]["key"] for step in STEPS if step.get("uses", "").startswith("actions/cache")]
    assert len(keys) == 3
    for key in keys:
        names = re.findall(r"'([^']+)'", key)
        assert names
        assert all((REPOSITORY / name).exists() for name in names)


@pytest.fixture
def checkout(built, tmp_path) -> Path:
    """What the actions before the first step leave: the checkout of a pull request, .venv and DVC's cache."""
    base = shutil.copytree(built, tmp_path / "base", symlinks=True)
    run(base, "git", "checkout", "-q", "-B", "main")
    run(tmp_path, "git", "clone", "-q", str(base), "checkout")
    checkout = tmp_path / "checkout"
    shutil.copytree(base / ".dvc" / "cache", checkout / ".dvc" / "cache")
    (checkout / ".venv").mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):  # a virtual environment that make takes for its own, without installing
        (checkout / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    (checkout / ".venv" / "ready").touch()
    return checkout


def run_job(job: str, event: str, checkout: Path) -> dict[str, Path]:
    """Run a job's scripts as the runner does; the files that it lets them write to."""
    files = {name: checkout.parent / name for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    given = {name: str(path) for name, path in files.items()}
    given |= {"GITHUB_BASE_REF": "main", "RUNNER_TEMP": str(checkout.parent)}
    for script in scripts(job, event):
        command = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", script]
        done = subprocess.run(command, cwd=checkout, env=environment(checkout, **given), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return files


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="make works in a virtual environment")
def test_the_jobs_run_in_a_clone(checkout):
    assert scripts("rebuild", "push") == ["make verify", "make repro"]
    run_job("rebuild", "push", checkout)
    assert run(checkout, "git", "status", "--porcelain").stdout == ""

    set_parameter(checkout, "judge.controls", 3)
    commit(checkout, "Fewer controls, and the results not rebuilt")
    files = run_job("compare", "pull_request", checkout)
    table = files["GITHUB_STEP_SUMMARY"].read_text()
    assert "origin/main" in table
    assert "judge" in table
    assert files["GITHUB_OUTPUT"].read_text() == f"table<<END_OF_TABLE\n{table}END_OF_TABLE\n"
    changed = run(checkout, "git", "status", "--porcelain").stdout.split()[1::2]
    assert {"dvc.lock", "metrics/judge.json"} <= set(changed)
    assert not list((checkout / ".scratchlm").glob("snapshot-*"))
