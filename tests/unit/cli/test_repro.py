"""The plan of `scratchlm repro`, its words, and what replaces DVC's messages."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from dvc.exceptions import ReproductionError
from dvc.repo import Repo
from dvc.stage.exceptions import StageCmdFailedError

from scratchlm.cli import repro
from scratchlm.cli.repro import (
    Step,
    duration,
    failure,
    last_seconds,
    log_of,
    next_text,
    plan_text,
    planned,
    reason,
    typed,
)


def test_a_plan_has_a_line_for_each_stage_and_the_time_of_their_last_runs():
    steps = [
        Step("finetune_instruct", "finetune_instruct.epochs changed", 33.2),
        Step("finetune_preference@dpo", "after finetune_instruct", 90),
        Step("report", "after finetune_instruct, finetune_preference@dpo, reinforce@grpo, judge", None),
    ]
    text = plan_text(steps, 18)
    assert text.splitlines() == [
        "3 of 18 stages may have to run:",
        "   1  finetune_instruct               34 s  finetune_instruct.epochs changed",
        "   2  finetune_preference@dpo   1 min 30 s  after finetune_instruct",
        "   3  report                                after finetune_instruct…",
        "As long as their last runs: at least 2 min 4 s.",
    ]
    assert max(map(len, text.splitlines())) <= 80
    first = plan_text([Step("finetune_spam", f"data/{'x' * 80} changed", None)], 18)  # without times
    assert first.splitlines()[1] == f"   1  finetune_spam  data/{'x' * 53}…"
    assert plan_text(steps[:2], 18).endswith("about 2 min 4 s.")
    assert "last runs" not in plan_text(steps[2:], 18)
    assert plan_text([], 18) == "All 18 stages are up to date."


@pytest.mark.parametrize(
    ("changes", "before", "words"),
    [
        ([{"changed deps": {"params.yaml": {"pretrain": "modified", "seed": "modified"}}}], [],
         "pretrain changed and 1 more"),
        ([{"changed deps": {"data/code/judge.json": "modified"}}], [], "its code changed"),
        ([{"changed outs": {"data/report.html": "deleted"}}], [], "data/report.html deleted"),
        (["changed command"], ["judge"], "changed command"),
        ([], ["generate@base", "judge"], "after generate@base, judge"),
    ],
    ids=["parameters", "code", "output", "command", "stages above"],
)  # fmt: skip
def test_the_reason_is_what_changed_or_else_the_stages_above(changes, before, words):
    assert reason(changes, before) == words


@pytest.mark.long
def test_a_stage_whose_outputs_are_neither_here_nor_in_the_cache_is_not_built_here_yet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("a")
    chain = {"first": ("text", "one"), "second": ("one", "two")}
    stages = {name: {"cmd": f"cp {dep} {out}", "deps": [dep], "outs": [out]} for name, (dep, out) in chain.items()}
    Path("dvc.yaml").write_text(json.dumps({"stages": stages}))
    with Repo.init(no_scm=True) as repo:
        repo.reproduce("first")
        assert planned(repo) == [Step("second", "not built here yet", None)]
        Path("text").write_text("b")
        Path("one").unlink()
        assert [step.why for step in planned(repo)] == ["text changed and 1 more", "not built here yet"]
        shutil.rmtree(".dvc/cache")  # as in a clone, which has dvc.lock but none of its outputs
        assert [step.why for step in planned(repo)] == ["not built here yet", "not built here yet"]


def test_the_time_of_a_stage_is_that_of_its_last_run_that_did_not_resume(tmp_path):
    log = tmp_path / "pretrain.jsonl"
    assert last_seconds(log) is None
    whole = '{"stage": "pretrain", "seconds": 40.5}\n'
    log.write_text(whole + '{"step": 3}\n')
    assert last_seconds(log) == 40.5
    log.write_text(whole + '{"resumed_from": "step 41 of 58"}\n{"stage": "pretrain", "seconds": 2.5}\n')
    assert last_seconds(log) == 40.5
    log.write_text(log.read_text() + '{"stage": "pretrain", "seconds": 39}\n')
    assert last_seconds(log) == 39


@pytest.mark.parametrize("text", ["", "{", "[1]\n", "3\n", '{"stage": "x"}\n', '{"stage": "x", "seconds": "long"}\n'])
def test_a_damaged_log_gives_no_time(tmp_path, text):
    (tmp_path / "x.jsonl").write_text(text)
    assert last_seconds(tmp_path / "x.jsonl") is None


def test_the_log_of_a_stage_is_an_option_of_its_command_or_there_is_none():
    assert log_of("python -m stages.report --page a.html --log logs/report.jsonl") == Path("logs/report.jsonl")
    assert last_seconds(log_of("./mine.sh")) is None


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (59.1, "1 min 0 s"), (125, "2 min 5 s"), (12_000, "3 h 20 min")]
)
def test_a_duration_in_words_has_two_units(seconds, words):
    assert duration(seconds) == words


def test_dvcs_messages_become_one_line_per_planned_stage(capsys):
    handler = logging.StreamHandler()
    logger = logging.getLogger("dvc")
    logger.addHandler(handler)
    try:
        with repro.narrated(["pretrain", "judge", "report"]):
            logger.warning("Running stage '%s':", "pretrain")
            logger.warning("Running stage '%s':", "elsewhere")
            logger.warning("Stage '%s' didn't change, skipping", "judge")
            logger.warning("Stage '%s' is cached - skipping run, checking out outputs", "report")
    finally:
        logger.removeHandler(handler)
    assert capsys.readouterr().out.splitlines()[:1] == ["stage 1 of 3: pretrain"]


def test_a_failed_stage_has_said_why_and_a_failure_of_dvc_is_told():
    error = ReproductionError("failed to reproduce 'pretrain'")
    error.__cause__ = StageCmdFailedError("python", 1)
    assert failure(error) == "stopped at 'pretrain', which says above why; run this again to continue there"
    error.__cause__ = OSError("no space")
    assert failure(error) == "stopped at 'pretrain': no space; correct that and run this again"


def test_a_command_is_typed_with_its_path_unless_the_environment_is_activated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "scratchlm").touch(0o755)
    on_path = {"PATH": str(folder)}
    assert typed("scratchlm", {"VIRTUAL_ENV": str(folder.parent)}, folder) == "scratchlm"
    assert typed("scratchlm", on_path, folder) == "scratchlm"
    assert typed("scratchlm", on_path | {"MAKELEVEL": "1"}, folder) == ".venv/bin/scratchlm"  # make's own PATH
    assert typed("scratchlm", {"PATH": "/bin"}, folder) == ".venv/bin/scratchlm"
    assert typed("scratchlm", {"PATH": "/bin"}, Path("/opt/env/bin")) == "/opt/env/bin/scratchlm"


def test_what_to_do_next_fits_80_columns():
    lines = next_text(".venv/bin/scratchlm").splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("  .venv/bin/scratchlm chat  ") for line in lines)
