"""What tells two runs of a stage apart: exactly what makes DVC rerun it. In a folder laid out as this repository."""

import shutil
from pathlib import Path

import pytest

from scratchlm.run.pipeline import cache_key, read_stages

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository's own files, and small inputs in place of the artifacts of other stages."""
    for name in ("dvc.yaml", "params.yaml", "environment.json"):
        shutil.copy(REPOSITORY / name, tmp_path)
    for name in ("src", "stages"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("tokens/tokenizer", "tokens/messages", "models/gpt2-nano"):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        (folder / "file").write_text(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def spam() -> str:
    return cache_key(read_stages()["finetune_spam"])


CHANGES = {
    "its parameter": ("params.yaml", "  epochs: 3\n", "  epochs: 4\n"),
    "a top-level parameter": ("params.yaml", "threads: 2", "threads: 1"),
    "its seed": ("params.yaml", "seed: 123", "seed: 124"),
    "its script": ("stages/finetune_spam.py", "Finetune a base", "Finetune a  base"),
    "a library file that it imports": ("src/scratchlm/training/loop.py", "The one training loop", "The training loop"),
    "an input file": ("data/tokens/messages/file", "tokens", "Tokens"),
    "a file's name in an input folder": None,
    "a further file in an input folder": None,
    "a package that it uses": ("environment.json", '"torch": "2.', '"torch": "3.'),
    "its command": ("dvc.yaml", "--curve metrics/plots/finetune_spam.csv", "--curve metrics/plots/spam.csv"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_of_what_a_stage_depends_on_makes_it_another_run(workspace: Path, what: str) -> None:
    before = spam()
    assert spam() == before
    change = CHANGES[what]
    folder = workspace / "data/tokens/messages"
    if change:
        replace(workspace / change[0], change[1], change[2])
    elif "name" in what:
        (folder / "file").rename(folder / "other")
    else:
        (folder / "another").touch()
    assert spam() != before


OTHERS = {
    "another stage's parameter": ("params.yaml", "controls: 10", "controls: 11"),
    "a comment": ("params.yaml", "seed: 123 ", "seed: 123  # "),
    "a library file that it does not import": ("src/scratchlm/judge/scoring.py", "Scoring", "scoring"),
    "a package that it does not use": ("environment.json", '"jinja2": "3', '"jinja2": "4'),
    "another stage's command": ("dvc.yaml", "--judgements data/responses/judge", "--judgements data/responses/other"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_change_of_anything_else_does_not(workspace: Path, what: str) -> None:
    before = spam()
    file, old, new = OTHERS[what]
    replace(workspace / file, old, new)
    assert spam() == before


def test_a_foreach_stage_is_told_apart_by_its_own_item_only(workspace: Path) -> None:
    variants = "spam_ablations:\n  first: {position: first}\n  mean: {position: mean}\n"
    replace(workspace / "params.yaml", "spam_ablations: {}", variants)
    before = {name: cache_key(read_stages()[f"ablate_spam@{name}"]) for name in ("first", "mean")}
    assert before["first"] != before["mean"]
    replace(workspace / "params.yaml", "mean: {position: mean}", "mean: {position: last}")
    after = {name: cache_key(read_stages()[f"ablate_spam@{name}"]) for name in ("first", "mean")}
    assert after["first"] == before["first"]
    assert after["mean"] != before["mean"]
