"""The short form of `make torture`: three kills during training, one of each kind."""

import re
import signal
import subprocess
from collections import Counter

import pytest
import yaml

from tests.clones import WITHOUT_GPT2, commit, keep_stages, make_clone, run, set_parameter
from tests.pipeline.kills import SOME_STEPS, Clone, kill, wait_for

FEWER_STEPS = {"pretrain.epochs": 0.15, "finetune_spam.epochs": 2, "finetune_instruct.epochs": 0.5}
# Those that are killed, what they need, and the next ones: a stage deletes the checkpoints of those before it
STAGES = ["code", "preflight", "download", "tokenize", "pretrain", "finetune_instruct", "finetune_spam"]
STAGES += ["generate", "judge"]
TWO_MICRO_BATCHES = {f"{stage}.max_micro_batch_size": 8 for stage in ("pretrain", "finetune_instruct", "finetune_spam")}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """Built once without a kill."""
    folder = tmp_path_factory.mktemp("kills")
    make_clone(folder / "clone", SOME_STEPS | FEWER_STEPS | WITHOUT_GPT2 | TWO_MICRO_BATCHES)
    keep_stages(folder / "clone", *STAGES)
    pipeline = yaml.safe_load((folder / "clone" / "dvc.yaml").read_text())
    pipeline["stages"]["generate"]["do"]["deps"].insert(0, "data/models/finetune_spam")  # so that it follows
    (folder / "clone" / "dvc.yaml").write_text(yaml.safe_dump(pipeline))
    run(folder / "clone", "git", "checkout", "-q", "--", "dvc.lock")
    commit(folder / "clone", "Keep a few stages")
    clone = Clone(folder)
    clone.build()
    return clone


def start_and_wait_for_state(clone: Clone, stage: str) -> subprocess.Popen[str]:
    """Start `dvc repro` and wait until `stage` could be resumed from a checkpoint."""
    dvc = clone.start()
    states = clone.path / ".scratchlm" / "resume" / stage
    wait_for(lambda: any("-" in path.name for path in states.glob("*")), f"{stage} saves no checkpoint", seconds=300)
    return dvc


def test_three_kills_in_mid_training_leave_no_trace_in_the_result(clone: Clone) -> None:
    """The killed trainings have two workers, and one finishes them. Only one of the workers writes curves."""
    clone.forget()
    clone.variables |= {"SCRATCHLM_WORKERS": "2", "SCRATCHLM_TENSORBOARD": "runs"}
    for how, stage in (("group", "pretrain"), ("dvc", "finetune_instruct"), ("stage", "finetune_spam")):
        dvc = start_and_wait_for_state(clone, stage)
        assert len([process for process in clone.processes() if f"stages.{stage}" in process.cmdline()]) == 2
        kill(clone, dvc, how)
    del clone.variables["SCRATCHLM_WORKERS"]
    clone.finish()
    assert dict(clone.resumed()) == {"pretrain": 1, "finetune_spam": 1, "finetune_instruct": 1}
    del clone.variables["SCRATCHLM_TENSORBOARD"]
    files = Counter(path.parent.name for path in (clone.path / "runs").rglob("events.*"))
    assert files == {"pretrain": 2, "finetune_spam": 2, "finetune_instruct": 2}  # of the killed run and the resumed one


def test_an_interrupt_ends_with_one_sentence_and_a_state_and_a_change_starts_afresh(clone: Clone) -> None:
    """Ctrl-C reaches the whole process group; then a parameter changes (test_cache_key.py has other changes)."""
    clone.forget()
    dvc = start_and_wait_for_state(clone, "pretrain")
    dvc.send_signal(signal.SIGINT)
    stage = clone.stage()
    assert stage is not None
    stage.send_signal(signal.SIGINT)
    assert dvc.wait(timeout=30) != 0
    said = [line for line in clone.output.read_text().splitlines() if "interrupted" in line]
    assert len(said) == 1
    assert re.search(r"pretrain: interrupted; .*`dvc repro`.* from step \d+ of \d+", said[0])
    assert "Traceback" not in clone.output.read_text()

    before = clone.resumed()["pretrain"]
    set_parameter(clone.path, "pretrain.learning_rate", 0.001)
    done = run(clone.path, "dvc", "repro", "pretrain", **clone.variables)
    assert re.search("inputs, parameters or code", done.stderr)
    assert clone.resumed()["pretrain"] == before
    run(clone.path, "git", "checkout", "-q", "--", ".")
