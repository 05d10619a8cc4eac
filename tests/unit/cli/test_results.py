import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from scratchlm.cli.results import committed_headline, repeated_note, results_json, results_text
from scratchlm.compare.git import git
from scratchlm.report.headline import Headline, read_headline
from scratchlm.run.errors import UserError
from scratchlm.run.files import read_json, write_json
from tests.clones import REPOSITORY

LINES = [
    Headline("finetune_instruct", "val loss, nats per response token", "6.44", "0.3672"),
    Headline("judge", "mean score of 0 to 100", "1.442 (0.9676 to 1.949)", "72.69", "66.13 to 78.89"),
    Headline("baseline_spam", "test accuracy", "", "100.0\N{NO-BREAK SPACE}%", "97.5 % to 100.0 %"),
    Headline("a-model-of-a-very-long-name", "mean score of a-variant-of-a-long-name", "", "12,345", "–"),
]


def test_the_committed_results_are_those_of_stages_that_visibly_learnt():
    def found(name: str) -> dict[str, Any]:
        return read_json(REPOSITORY / "metrics" / f"{name}.json")

    pretrained, judged = found("pretrain"), found("judge")
    assert pretrained["untrained_val_loss"] - pretrained["val"]["loss"] >= 2
    assert found("load_gpt2/nano")["val"]["loss"] < pretrained["val"]["loss"]
    assert found("finetune_spam")["test"]["accuracy"] >= 0.95
    assert found("finetune_preference/dpo")["test"]["accuracy"] >= 0.8
    assert found("reward_model/bradley_terry")["test"]["accuracy_low"] >= 0.65
    reinforced = found("reinforce/grpo")["test"]  # its gain is small, and the interval may include 0
    assert reinforced["gain_high"] > 0 and reinforced["finished_share"] >= 0.95
    assert judged["base"]["mean_score"] <= 10
    assert judged["instruct"]["mean_score"] >= 60


def test_results_fit_80_columns_and_show_what_was_before_training():
    text = results_text(LINES, LINES)
    assert max(map(len, text.splitlines())) <= 80
    head, _, instruct, judge, *_, long = text.splitlines()
    assert head.split() == ["before", "result", "95", "%", "interval"]
    assert instruct.split() == ["finetune_instruct", "val", "loss", "6.44", "0.3672"]
    assert judge.split()[-5:] == ["1.442", "72.69", "66.13", "to", "78.89"]
    assert long.startswith("a-model-of-a-ver…  mean score of a-varia…")
    assert results_text(LINES, []) == text


def test_results_that_differ_from_the_last_commit_are_shown_beside_it():
    committed = [LINES[0]._replace(result="0.4"), *LINES[2:]]
    text = results_text(LINES, committed)
    assert max(map(len, text.splitlines())) <= 80
    head, _, instruct, judge, *_ = text.splitlines()
    assert head.split() == ["HEAD", "result", "95", "%", "interval"]
    assert instruct.split() == ["finetune_instruct", "val", "loss", "0.4", "0.3672"]
    assert judge.split()[-4:] == ["72.69", "66.13", "to", "78.89"]  # new: HEAD has none


def test_results_for_programs_are_numbers_with_their_intervals_and_those_of_the_last_commit():
    spam = Headline("finetune_spam", "test accuracy", "", "99.3 %", "96.3 % to 99.9 %", 0.993333, 0.963193, 0.998821)
    loss = Headline("finetune_instruct", "val loss", "6.44", "0.3672", value=0.367201, before=6.43961)
    found = json.loads(results_json([spam, loss], [loss._replace(value=0.4)]))
    assert [list(row.values()) for row in found] == [
        ["finetune_spam", "test accuracy", 0.993333, 0.963193, 0.998821, None, None],
        ["finetune_instruct", "val loss", 0.367201, None, None, 6.43961, 0.4],
    ]


def test_many_messages_that_are_also_in_train_are_named_below_the_table():
    counts = {"duplicates_across_splits": 2, "val": {"records": 50}, "test": {"records": 151}}
    assert repeated_note(counts) is None
    note = repeated_note(counts | {"duplicates_across_splits": 3})
    assert note and note.startswith("Messages of val and test that are also in train: 3 of 201.")
    assert max(map(len, note.splitlines())) <= 80


def test_without_a_commit_there_are_no_results_to_compare_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert committed_headline() == []
    git(tmp_path, "init", "--quiet")
    assert committed_headline() == []


def test_metrics_of_a_version_that_lacks_one_are_a_sentence(tmp_path: Path):
    metrics = shutil.copytree(REPOSITORY / "metrics", tmp_path / "metrics")
    found = read_json(metrics / "pretrain.json")
    del found["untrained_val_loss"]
    write_json(metrics / "pretrain.json", found)
    with pytest.raises(
        UserError, match="/metrics has no untrained_val_loss, which this version shows; run `dvc repro`$"
    ):
        read_headline(REPOSITORY / "params.yaml", metrics)
