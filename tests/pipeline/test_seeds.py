"""`scratchlm seeds` as a user calls it, on a pipeline of few steps."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from scratchlm.compare.seeds import run_seeds
from scratchlm.run.errors import UserError
from tests.clones import environment, run, set_parameter
from tests.pipeline.kills import wait_for

COMMAND = [sys.executable, "-m", "scratchlm.cli.main", "seeds", "--stage"]


@pytest.fixture(scope="module")
def clone(built, tmp_path_factory) -> Path:
    """The built clone, with a variant of the spam experiment that is neither built nor committed."""
    clone = tmp_path_factory.mktemp("seeds") / "scratchlm"
    shutil.copytree(built, clone, symlinks=True)
    set_parameter(clone, "spam_ablations", {"first_token": {"position": "first"}})
    (clone / "note.txt").write_text("not in git")
    return clone


@pytest.fixture
def workspace(clone):
    """The clone, put back afterwards."""
    before = (clone / "params.yaml").read_text()
    yield clone
    (clone / "params.yaml").write_text(before)


def files(clone: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of what git sees, and the names of what DVC made."""
    names = run(clone, "git", "ls-files", "--cached", "--others", "--exclude-standard").stdout.splitlines()
    made = [path for path in (clone / "data").rglob("*") if path.is_file()]
    paths = {*(clone / name for name in names), *made}
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def experiments(clone: Path) -> dict[str, str]:
    """Ref by the experiment's name; with it whatever else DVC left under its refs."""
    refs = run(clone, "git", "for-each-ref", "--format=%(refname)", "refs/exps").stdout.split()
    return {ref.split("/")[-1]: ref for ref in refs}


def left_behind(clone: Path) -> list[Path]:
    return list((clone / ".scratchlm").glob("scratchlm-clone-*"))


def show(clone: Path, ref: str, path: str) -> dict:
    return yaml.safe_load(run(clone, "git", "show", f"{ref}:{path}").stdout)


def stages_started(done: subprocess.CompletedProcess[str]) -> int:
    return done.stderr.count("Running stage")


def test_a_stage_is_run_under_several_seeds_and_the_workspace_is_left_alone(clone, tmp_path):
    before, status = files(clone), run(clone, "git", "status", "--porcelain").stdout
    plot = tmp_path / "noise.svg"
    command = [*COMMAND, "finetune_spam", "--seeds", "2", "--jobs", "2", "--keep", "--format", "json"]
    done = run(clone, *command, "--plot", str(plot))
    assert files(clone) == before
    assert run(clone, "git", "status", "--porcelain").stdout == status
    assert left_behind(clone) == []
    assert stages_started(done) == 1  # the first seed is the workspace's own, which is built
    assert "seed 124: Running stage 'finetune_spam':" in done.stderr
    assert "applied to your workspace" not in done.stderr
    assert done.stderr.splitlines()[-1] == "seed 124: finished, 2 of 2"
    assert "test.accuracy" in plot.read_text()

    report = json.loads(done.stdout)
    assert (report["stage"], report["seeds"]) == ("finetune_spam", [123, 124])
    kept = experiments(clone)
    assert set(kept) == {"finetune_spam-seed-123", "finetune_spam-seed-124"}
    losses = [show(clone, ref, "metrics/finetune_spam.json")["test"]["loss"] for ref in kept.values()]
    assert report["metrics"]["test.loss"]["values"] == losses
    assert losses[0] == show(clone, "HEAD", "metrics/finetune_spam.json")["test"]["loss"] != losses[1]
    listed = run(clone, "dvc", "exp", "list", "--name-only").stdout.split()
    assert set(listed) == set(kept)

    with pytest.raises(UserError, match="the experiment finetune_spam-seed-123 exists; remove it with `dvc exp remove"):
        run_seeds(clone, "finetune_spam", 2, keep=True)

    for name, seed in (("finetune_spam-seed-123", 123), ("finetune_spam-seed-124", 124)):
        params = show(clone, kept[name], "params.yaml")
        assert params == {**yaml.safe_load((clone / "params.yaml").read_text()), "seed": seed}
        lock = show(clone, kept[name], "dvc.lock")["stages"]
        other = yaml.safe_load((clone / "dvc.lock").read_text())["stages"]
        changed = {stage for stage in other if lock[stage] != other[stage]}
        assert changed == (set() if seed == 123 else {"finetune_spam"})


def test_a_variant_goes_by_its_address_and_is_not_computed_twice_though_its_experiments_are_gone(clone):
    before = experiments(clone)
    done = run(clone, *COMMAND, "ablate_spam@first_token", "--seeds", "2", "--jobs", "2")
    assert "ablate_spam@first_token, 2 runs with seeds 123 to 124" in done.stdout
    assert "minimum detectable difference" in done.stdout
    assert stages_started(done) == 2
    again = run(clone, *COMMAND, "ablate_spam@first_token", "--seeds", "2")
    assert stages_started(again) == 0
    assert again.stdout == done.stdout
    assert experiments(clone) == before
    assert left_behind(clone) == []


def test_runs_that_fail_are_one_sentence_with_their_seeds_and_stage(workspace):
    set_parameter(workspace, "finetune_spam.dropout", 2.0)
    done = run(workspace, *COMMAND, "finetune_spam", "--seeds", "3", "--jobs", "2", ok=False)
    assert done.stderr.splitlines()[-1] == (
        "scratchlm: finetune_spam failed with seeds 123, 124; correct the error printed above, then run this again: "
        "finished runs are in DVC's cache"
    )
    lines = done.stderr.splitlines()
    assert any(line.startswith("seed 123: ") and "finetune_spam.dropout is 2.0" in line for line in lines)
    assert done.stdout == ""
    assert left_behind(workspace) == []


def test_a_killed_run_leaves_the_other_and_an_interruption_no_process_no_copy_and_no_experiment(workspace):
    set_parameter(workspace, "finetune_spam.epochs", 1000)  # more than anybody waits for
    before = experiments(workspace)
    process = subprocess.Popen(
        [*COMMAND, "finetune_spam", "--seeds", "3", "--jobs", "2"], cwd=workspace,
        env=environment(workspace, SCRATCHLM_RESUME_SECONDS="0"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    checkpoints = "scratchlm-clone-*/*/.scratchlm/resume/finetune_spam/*-*"
    saved = (workspace / ".scratchlm").glob
    wait_for(lambda: len({path.parent for path in saved(checkpoints)}) == 2, "one of two saves no checkpoint")
    family = psutil.Process(process.pid).children(recursive=True)
    killed, other = (member for member in family if member.cmdline()[1:3] == ["-m", "stages.finetune_spam"])
    killed.kill()
    wait_for(lambda: len(psutil.Process(process.pid).children()) == 1, "DVC does not end with its stage")
    assert other.is_running()
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate()
    assert process.returncode != 0
    assert "Traceback" not in rest
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == []
    assert left_behind(workspace) == []
    assert experiments(workspace) == before
    assert run(workspace, "git", "status", "--porcelain", "dvc.lock", "metrics").stdout == ""


@pytest.mark.parametrize(
    ("stage", "n", "sentence"),
    [
        ("finetune_spam", 1, "--seeds is 1; 2 to 1,000 runs are allowed: give --seeds 5"),
        ("finetune_spam", 10**9, "--seeds is 1000000000; 2 to 1,000 runs are allowed"),
        (
            "finetune_spma",
            2,
            "finetune_spma is not a stage of dvc.yaml; name one of the stages that read a seed: tokenize, pretrain,",
        ),
        ("load_gpt2@nano", 2, r"load_gpt2@nano reads no seed; .* finetune_spam, ablate_spam@first_token, .*judge"),
        ("report", 2, "report reads no seed"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(clone, stage, n, sentence):
    with pytest.raises(UserError, match=sentence):
        run_seeds(clone, stage, n)


def test_inputs_that_the_parameters_no_longer_describe_are_refused(workspace):
    set_parameter(workspace, "tokenize.messages.balance", False)
    with pytest.raises(
        UserError, match="reads the outputs of tokenize, which `dvc repro` would build again; .*: run `dvc repro` first"
    ):
        run_seeds(workspace, "finetune_spam", 2)
    assert left_behind(workspace) == []


def test_inputs_that_the_code_no_longer_describes_are_refused(workspace):
    script = workspace / "stages" / "tokenize.py"
    before = script.read_text()
    script.write_text(before + "# edited\n")
    with pytest.raises(UserError, match="reads the outputs of tokenize, which `dvc repro` would build again"):
        run_seeds(workspace, "finetune_spam", 2)
    script.write_text(before)
    assert left_behind(workspace) == []


def test_a_fresh_clone_is_told_to_build_first(built, tmp_path):
    clone = tmp_path / "fresh"
    run(tmp_path, "git", "clone", "-q", str(built), str(clone))
    with pytest.raises(UserError, match="finetune_spam reads the outputs of download, .* would build again; "):
        run_seeds(clone, "finetune_spam", 2)


def test_outside_a_project_it_says_where_to_call_it(tmp_path):
    with pytest.raises(UserError, match="has no dvc.yaml; run this in the project's own folder"):
        run_seeds(tmp_path, "finetune_spam", 2)
