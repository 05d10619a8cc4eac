"""The team's tools on two classes of processor: one commits its results, the other continues from them.

The second is emulated by torch's baseline kernels, whose float32 has other bits. The pipeline is cut down to two stages
that compute, to be quick. It tests what is committed: commit before you run it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scratchlm.arithmetic.fingerprint import arithmetic_fingerprint
from scratchlm.run.files import read_json, write_json
from scratchlm.verify.status import status
from tests.clones import (
    FEW_STEPS,
    IDENTITY,
    SCRATCHLM,
    WITHOUT_GPT2,
    commit,
    keep_stages,
    make_clone,
    run,
    set_parameter,
    stages_run,
)

OTHER = {"ATEN_CPU_CAPABILITY": "default"}
STAGES = ["code", "preflight", "download", "tokenize", "pretrain", "finetune_spam"]
ROWS = 9  # that `compare` gives a verdict: three of pretrain, six of finetune_spam


def fingerprint_there() -> str:
    code = "from scratchlm.arithmetic.fingerprint import arithmetic_fingerprint as f; print(f())"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=os.environ | OTHER, capture_output=True, text=True, check=True).stdout.strip()


def scratchlm(clone: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return run(clone, *SCRATCHLM, *words, **OTHER)


def compared(clone: Path, *names: str) -> dict:
    (found,) = json.loads(scratchlm(clone, "compare", *names, "--format", "json").stdout)
    return found


def verdicts(found: dict) -> list[str]:
    return [row["verdict"] for row in found["metrics"] if row["verdict"]]


def stages_built(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The stages that `scratchlm build` ran."""
    return re.findall(r"Running stage '([^']+)'", done.stderr)


def kept(clone: Path) -> list[str]:
    return run(clone, "git", "for-each-ref", "--format=%(refname)", "refs/scratchlm").stdout.split()


def forget_builds(clone: Path) -> None:
    for ref in kept(clone):
        run(clone, "git", "update-ref", "-d", ref)


@pytest.fixture(scope="module")
def committer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with the cut pipeline, built and committed in float32 on this processor."""
    if arithmetic_fingerprint() == fingerprint_there():
        pytest.skip("this processor computes the same in both ways")
    clone = make_clone(
        tmp_path_factory.mktemp("committer") / "scratchlm",
        FEW_STEPS | WITHOUT_GPT2,
    )
    run(clone, "git", "switch", "-qC", "main")
    keep_stages(clone, *STAGES)
    assert stages_run(run(clone, "dvc", "repro")) == STAGES
    commit(clone, "Build")
    return clone


@pytest.fixture(scope="module")
def newcomer(committer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of it on the other processor, after the steps of README: make repro, a branch, a change, dvc repro."""
    folder = tmp_path_factory.mktemp("newcomer")
    run(folder, "git", "clone", "-q", str(committer), "scratchlm")
    clone = folder / "scratchlm"
    for setting in IDENTITY[1::2]:
        run(clone, "git", "config", *setting.split("=", 1))
    assert scratchlm(clone, "repair").stdout == ""
    assert stages_run(run(clone, "dvc", "repro", **OTHER)) == STAGES
    (clone / ".git" / "status.txt").write_text(scratchlm(clone, "status").stdout)
    run(clone, "git", "switch", "-qc", "longer")
    set_parameter(clone, "finetune_spam.epochs", 0.4)
    assert stages_run(run(clone, "dvc", "repro", **OTHER)) == ["preflight", "finetune_spam"]
    commit(clone, "Train longer")
    return clone


def test_the_first_rebuild_says_how_far_it_is_from_the_committed_results(newcomer: Path) -> None:
    (line,) = (newcomer / ".git" / "status.txt").read_text().splitlines()
    assert re.fullmatch(
        r"Equal to the committed results of HEAD \(\w{7}\) within the tolerances of `scratchlm verify`\. "
        r"They were built with .+, these with baseline kernels \(.+\)\.",
        line,
    )


def test_every_row_is_compared_and_names_stay_names(newcomer: Path) -> None:
    found = compared(newcomer, "main", "longer")
    assert len(verdicts(found)) == ROWS
    assert "not compared" not in verdicts(found)
    assert (found["baseline"]["revision"], found["warnings"]) == ("main", [])
    assert [change["name"] for change in found["changes"]["parameters"]] == ["finetune_spam.epochs"]
    head = scratchlm(newcomer, "compare", "main", "longer").stdout.splitlines()[0]
    assert re.fullmatch(r"longer \(\w{7}\) compared with main \(\w{7}, built on .+\)", head)


def test_without_a_kept_build_the_footnote_names_the_processors_and_its_advice_works(newcomer: Path) -> None:
    forget_builds(newcomer)
    found = compared(newcomer, "main", "longer")
    assert verdicts(found) == ROWS * ["not compared"]
    (note,) = {row["note"] for row in found["metrics"] if row["note"]}
    assert re.fullmatch(r"main was built with .+ kernels, longer with baseline kernels, and .+: `(.+)`", note)
    advice = note.split("`")[1].split()
    assert advice == ["scratchlm", "build", "main", "longer"]
    for _ in range(2):
        done = scratchlm(newcomer, *advice[1:])
        assert (done.stdout, stages_built(done)) == ("main longer\n", [])  # from the run cache
        assert len(kept(newcomer)) == 1
    assert run(newcomer, "git", "status", "--porcelain").stdout == ""
    assert "not compared" not in verdicts(compared(newcomer, "main", "longer"))


def test_results_of_the_other_processor_at_hand_do_not_stand_in_the_way(
    committer: Path, newcomer: Path, tmp_path: Path
) -> None:
    """As in CI, where runners of both kinds share one cache."""
    clone = shutil.copytree(newcomer, tmp_path / "scratchlm", symlinks=True)
    shutil.copytree(committer / ".dvc" / "cache", clone / ".dvc" / "cache", dirs_exist_ok=True)
    forget_builds(clone)
    assert stages_built(scratchlm(clone, "build", "main")) == []
    assert kept(clone) == []  # it is the committed one
    assert stages_built(scratchlm(clone, "build", "main", "workspace")) == []
    assert "not compared" not in verdicts(compared(clone, "main"))


def test_switching_back_runs_no_stage_and_raises_no_false_alarm(newcomer: Path) -> None:
    run(newcomer, "git", "switch", "-q", "main")
    result = json.loads(scratchlm(newcomer, "verify", "--stages", "pretrain", "--format", "json").stdout)
    assert {finding["verdict"] for finding in result["findings"]} == {"identical", "within tolerance", "not compared"}
    assert any("belong to another build" in remark for remark in result["remarks"])
    assert re.fullmatch(r"baseline kernels \(.+\)", result["machines"][1])
    assert not re.search(r"[0-9a-f]{16}", " ".join(result["machines"]))
    assert scratchlm(newcomer, "repair").stdout.startswith("dvc.lock named outputs that are neither here nor ")
    assert stages_run(run(newcomer, "dvc", "repro", **OTHER)) == []
    assert scratchlm(newcomer, "status").stdout.startswith("Equal to the committed results of HEAD")


def test_the_status_of_committed_changed_and_wrong_results(committer: Path) -> None:
    assert re.fullmatch(r"Identical to the committed results of HEAD \(\w{7}\)\.", status(committer))
    output = committer / "data" / "predictions" / "finetune_spam.parquet"
    output.rename(committer / ".git" / "output")
    assert "but data/predictions/finetune_spam.parquet are not its outputs; run `dvc checkout`" in status(committer)
    (committer / ".git" / "output").rename(output)
    with (committer / "dvc.lock").open("a") as lock:
        lock.write("# of other code\n")
    assert "but dvc.lock changed, as dvc.lock does with code that changes no result; commit it" in status(committer)
    run(committer, "git", "checkout", "-q", "--", "dvc.lock")
    path = committer / "metrics" / "finetune_spam.json"
    metrics = read_json(path)
    metrics["test"]["recall"] += 0.1
    write_json(path, metrics)
    assert "Different from the committed results" in status(committer)
    assert "finetune_spam.test.recall" in status(committer)
    (committer / "stages" / "new.py").touch()
    assert "other inputs" in status(committer) and "(stages/new.py changed)" in status(committer)
    (committer / "stages" / "new.py").unlink()
    run(committer, "git", "checkout", "-q", "--", "metrics")
    assert kept(committer) == []


def test_a_stage_refuses_the_library_of_another_checkout(committer: Path, newcomer: Path) -> None:
    foreign = {"PYTHONPATH": str(committer / "src")}
    done = run(newcomer, "dvc", "repro", "-f", "-s", "code", ok=False, **foreign)
    sentence = f"code: scratchlm is imported from {committer}/src/scratchlm, but this project's is {newcomer}/src/"
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
