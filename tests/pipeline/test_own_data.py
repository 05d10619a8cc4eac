"""A build from one's own corpus, messages and instructions: lines of params.yaml, and no Python."""

import json
from pathlib import Path

import pytest
import yaml

from tests.clones import FEW_STEPS, REPOSITORY, WITHOUT_GPT2, commit, make_clone, run

OWN = {
    "sources.corpus": {"path": "data/mine/novel"},
    "sources.messages": {"path": "data/mine/reviews.csv", "columns": {"text": "review", "label": "sentiment"}},
    "sources.instructions": {"path": "data/mine/tasks.jsonl", "columns": {"instruction": "task", "output": "answer"}},
}
FEWER_STAGES = {"preference_runs": {}, "reward_runs": {}, "reinforce_runs": {}}
FEW_DATA = {"pretrain.epochs": 1.0, "finetune_instruct.epochs": 1.0}
MOODS = {"good": "I liked the {}", "bad": "I hated the {}", "mixed": "Some liked the {}, some not"}


def add_own_files(clone: Path) -> None:
    mine = clone / "data" / "mine"
    (mine / "novel").mkdir()
    stories = (REPOSITORY / "data" / "sample" / "stories.txt").read_text(encoding="utf-8")
    for number, part in enumerate((stories[:40_000], stories[40_000:90_000])):
        (mine / "novel" / f"chapter_{number}.txt").write_text(part, encoding="utf-8")
    rows = [f'{n},"{text.format(f"film number {n}")}",{mood}' for n in range(50) for mood, text in MOODS.items()]
    (mine / "reviews.csv").write_text("\n".join(["id,review,sentiment", *rows]))
    tasks = [{"task": f"Say {n}.", "answer": f"{n}."} for n in range(60)]
    (mine / "tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)))


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clone = make_clone(
        tmp_path_factory.mktemp("own") / "clone", FEW_STEPS | WITHOUT_GPT2 | FEWER_STAGES | FEW_DATA | OWN
    )
    add_own_files(clone)
    run(clone, "dvc", "repro")
    commit(clone, "Build from own data")
    return clone


def metrics(clone: Path, name: str) -> dict:
    return json.loads((clone / "metrics" / f"{name}.json").read_text())


def sources(clone: Path) -> dict:
    return json.loads((clone / "data" / "sources.json").read_text())


def test_every_file_is_counted(clone: Path) -> None:
    found, counts = sources(clone), metrics(clone, "tokenize")
    assert {name: entry["files"] for name, entry in found.items() if name.startswith("own-")} == {
        "own-corpus": 2, "own-messages": 1, "own-instructions": 1,
    }  # fmt: skip
    assert sum(counts["corpus"][split]["bytes"] for split in ("train", "val")) == found["own-corpus"]["bytes"] + len(
        "<|endoftext|>"
    )
    assert sum(counts["instructions"][split]["records"] for split in ("train", "val", "test")) == 60


def test_the_classifier_has_the_three_classes_of_the_table(clone: Path) -> None:
    test = metrics(clone, "finetune_spam")["test"]
    assert test["confusion"].keys() == {f"{a}_as_{b}" for a in MOODS for b in MOODS}
    page = (clone / "data" / "report.html").read_text()
    assert "Your own data: data/mine/reviews.csv." in page and all(mood in page for mood in MOODS)
    assert "<b>data/mine/novel</b>" in page and "path" not in page.partition("</title>")[0].rpartition("<title>")[2]


def test_a_rebuild_in_a_clean_clone_gives_the_same_bytes(clone: Path, tmp_path: Path) -> None:
    run(clone, "git", "clone", "-q", str(clone), str(tmp_path / "other"))
    run(tmp_path / "other", "dvc", "repro")
    assert (tmp_path / "other" / "dvc.lock").read_bytes() == (clone / "dvc.lock").read_bytes()


def test_an_edit_of_a_file_runs_again_what_depends_on_it(clone: Path) -> None:
    with (clone / "data" / "mine" / "reviews.csv").open("a") as file:
        file.write("\n151,Fine,good")
    done = run(clone, "dvc", "repro", "tokenize")
    assert "Running stage 'download'" in done.stdout and "Running stage 'tokenize'" in done.stdout
    assert sources(clone)["own-messages"]["bytes"] == (clone / "data/mine/reviews.csv").stat().st_size


@pytest.mark.parametrize("purpose", ["corpus", "messages", "instructions", "preferences"])
def test_a_missing_file_is_named_before_anything_runs(clone: Path, purpose: str) -> None:
    params = clone / "params.yaml"
    before = params.read_text()
    changed = yaml.safe_load(before)
    changed["sources"][purpose] = {"path": "data/mine/poems"}
    params.write_text(yaml.safe_dump(changed))
    done = run(clone, "dvc", "repro", ok=False)
    params.write_text(before)
    assert "there is no file data/mine/poems; put one there" in done.stderr + done.stdout
    assert "Running stage 'download'" not in done.stdout
