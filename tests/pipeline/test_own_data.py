"""A project that `scratchlm init` makes, with one's own corpus, messages and instructions, as its README says."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.clones import (
    AUTHOR,
    FEW_STEPS,
    REPOSITORY,
    SCRATCHLM,
    WITHOUT_GPT2,
    environment,
    fork_in,
    lend_environment,
    run,
    set_parameter,
)
from tests.pages import blocks

FEWER_STAGES = {"preference_runs": {}, "reward_runs": {}, "reinforce_runs": {}}
FEW_DATA = {"pretrain.epochs": 1.0, "finetune_instruct.epochs": 1.0}
MOODS = {"good": "I liked the {}", "bad": "I hated the {}", "mixed": "Some liked the {}, some not"}


def add_own_files(project: Path) -> None:
    mine = project / "data" / "mine"
    (mine / "novel").mkdir()
    stories = (REPOSITORY / "data" / "sample" / "stories.txt").read_text(encoding="utf-8")
    for number, part in enumerate((stories[:40_000], stories[40_000:90_000])):
        (mine / "novel" / f"chapter_{number}.txt").write_text(part, encoding="utf-8")
    rows = [f'{n},"{text.format(f"film number {n}")}",{mood}' for n in range(50) for mood, text in MOODS.items()]
    (mine / "reviews.csv").write_text("\n".join(["id,review,sentiment", *rows]))
    tasks = [{"task": f"Say {n}.", "answer": f"{n}."} for n in range(60)]
    (mine / "tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)))


def as_its_readme_says(project: Path, number: int) -> str:
    """Run one block of the project's README in the environment that its first one makes; return what it printed."""
    programs = f"{project / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    text = [block.text for block in blocks(project / "README.md")][number]
    command = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", text]
    variables = environment(project, PATH=programs, **AUTHOR)
    done = subprocess.run(command, cwd=project, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = tmp_path_factory.mktemp("own") / "project"
    run(REPOSITORY, *SCRATCHLM, "init", str(project), **AUTHOR)
    add_own_files(project)
    lend_environment(project)
    fork_in(project)
    as_its_readme_says(project, 0)
    as_its_readme_says(project, 1)
    for key, value in (FEW_STEPS | WITHOUT_GPT2 | FEWER_STAGES | FEW_DATA).items():
        set_parameter(project, key, value)
    as_its_readme_says(project, 2)
    return project


def metrics(project: Path, name: str) -> dict:
    return json.loads((project / "metrics" / f"{name}.json").read_text())


def sources(project: Path) -> dict:
    return json.loads((project / "data" / "sources.json").read_text())


def test_every_file_is_counted(project: Path) -> None:
    found, counts = sources(project), metrics(project, "tokenize")
    assert {name: entry["files"] for name, entry in found.items() if name.startswith("own-")} == {
        "own-corpus": 2, "own-messages": 1, "own-instructions": 1,
    }  # fmt: skip
    assert sum(counts["corpus"][split]["bytes"] for split in ("train", "val")) == found["own-corpus"]["bytes"] + len(
        "<|endoftext|>"
    )
    assert sum(counts["instructions"][split]["records"] for split in ("train", "val", "test")) == 60


def test_the_classifier_has_the_three_classes_of_the_table(project: Path) -> None:
    test = metrics(project, "finetune_spam")["test"]
    assert test["confusion"].keys() == {f"{a}_as_{b}" for a in MOODS for b in MOODS}
    page = (project / "data" / "report.html").read_text()
    assert "Your own data: data/mine/reviews.csv." in page and all(mood in page for mood in MOODS)
    assert "<b>data/mine/novel</b>" in page and "path" not in page.partition("</title>")[0].rpartition("<title>")[2]


def test_a_branch_is_compared_with_main_and_its_rebuild_in_a_clean_clone_gives_the_same_bytes(project: Path) -> None:
    set_parameter(project, "finetune_spam.epochs", 1)
    said = as_its_readme_says(project, 3)
    assert re.search(r"^metric +main +longer ", said, flags=re.MULTILINE)
    assert re.search(r"^HEAD \(\w{7}\): \d+ identical\.\nVerified\.$", said, flags=re.MULTILINE)


def test_an_edit_of_a_file_runs_again_what_depends_on_it(project: Path) -> None:
    with (project / "data" / "mine" / "reviews.csv").open("a") as file:
        file.write("\n151,Fine,good")
    done = run(project, "dvc", "repro", "tokenize")
    assert "Running stage 'download'" in done.stdout and "Running stage 'tokenize'" in done.stdout
    assert sources(project)["own-messages"]["bytes"] == (project / "data/mine/reviews.csv").stat().st_size


@pytest.mark.parametrize("purpose", ["corpus", "messages", "instructions", "preferences"])
def test_a_missing_file_is_named_before_anything_runs(project: Path, purpose: str) -> None:
    params = project / "params.yaml"
    before = params.read_text()
    changed = yaml.safe_load(before)
    changed["sources"][purpose] = {"path": "data/mine/poems"}
    params.write_text(yaml.safe_dump(changed))
    done = run(project, "dvc", "repro", ok=False)
    params.write_text(before)
    assert "there is no file data/mine/poems; put one there" in done.stderr + done.stdout
    assert "Running stage 'download'" not in done.stdout
