"""The cache key of a run of a stage changes exactly when DVC would rerun the stage."""

import shutil
from pathlib import Path

import pytest

from scratchlm.run.code import imported_names, stage_code
from scratchlm.run.files import write_json
from scratchlm.run.pipeline import cache_key, read_stages

REPOSITORY = Path(__file__).resolve().parents[3]
CODE = Path("data/code/finetune_spam.json")


@pytest.fixture(scope="module")
def code() -> dict:
    """Of finetune_spam, as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        return code_of("finetune_spam")


@pytest.fixture
def workspace(code: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository's own files, and small inputs in place of the artifacts of other stages."""
    for name in ("dvc.yaml", "params.yaml", "requirements.lock"):
        shutil.copy(REPOSITORY / name, tmp_path)
    for name in ("src", "stages"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("tokens/tokenizer", "tokens/messages", "models/gpt2-nano"):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        (folder / "file").write_text(name)
    monkeypatch.chdir(tmp_path)
    write_json(CODE, code)
    return tmp_path


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def code_of(stage: str) -> dict:
    imported_names.cache_clear()  # it remembers files by path
    return stage_code(Path("stages", f"{stage}.py"), Path("src/scratchlm"), Path("requirements.lock"))


def spam() -> str:
    """The cache key of finetune_spam."""
    return cache_key(read_stages()["finetune_spam"])


def spam_after(file: str, old: str, new: str) -> str:
    """The same after an edit, where text is put at the end for an empty `old`, and the stage `code`."""
    path = Path(file)
    if old:
        replace(path, old, new)
    else:
        path.write_text(path.read_text() + new)
    if path.suffix in (".py", ".lock"):
        write_json(CODE, code_of("finetune_spam"))
    return spam()


CHANGES = {
    "its parameter": ("params.yaml", "  epochs: 3\n", "  epochs: 4\n"),
    "a top-level parameter": ("params.yaml", "threads: auto", "threads: 1"),
    "its seed": ("params.yaml", "seed: 123", "seed: 124"),
    "its script": ("stages/finetune_spam.py", "", "# edited\n"),
    "a library file that it imports": ("src/scratchlm/training/loop.py", "", "# edited\n"),
    "an input file": ("data/tokens/messages/file", "tokens", "Tokens"),
    "a package that it uses": ("requirements.lock", "torch==2.", "torch==3."),
    "its command": ("dvc.yaml", "--curve metrics/plots/finetune_spam.csv", "--curve metrics/plots/spam.csv"),
}


@pytest.mark.long
@pytest.mark.parametrize("what", CHANGES)
def test_a_change_of_what_a_stage_depends_on_makes_it_another_run(workspace: Path, what: str) -> None:
    before = spam()
    assert spam() == before
    assert spam_after(*CHANGES[what]) != before


def test_another_name_and_another_file_in_an_input_folder_make_it_another_run(workspace: Path) -> None:
    folder = workspace / "data/tokens/messages"
    before = spam()
    (folder / "file").rename(folder / "other")
    renamed = spam()
    (folder / "another").touch()
    assert len({before, renamed, spam()}) == 3


OTHERS = {
    "another stage's parameter": ("params.yaml", "controls: 10", "controls: 11"),
    "a comment": ("params.yaml", "seed: 123 ", "seed: 123  # "),
    "a library file that it does not import": ("src/scratchlm/report/page.py", "", "# edited\n"),
    "a package that it does not use": ("requirements.lock", "Jinja2==3", "Jinja2==4"),
    "another stage's command": ("dvc.yaml", "--judgements data/responses/judge", "--judgements data/responses/other"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_change_of_anything_else_does_not(workspace: Path, what: str) -> None:
    before = spam()
    assert spam_after(*OTHERS[what]) == before


def test_a_foreach_stage_is_told_apart_by_its_own_item_only(workspace: Path) -> None:
    variants = "spam_ablations:\n  first: {position: first}\n  mean: {position: mean}\n"
    replace(workspace / "params.yaml", "spam_ablations: {}", variants)
    before = {name: cache_key(read_stages()[f"ablate_spam@{name}"]) for name in ("first", "mean")}
    assert before["first"] != before["mean"]
    replace(workspace / "params.yaml", "mean: {position: mean}", "mean: {position: last}")
    after = {name: cache_key(read_stages()[f"ablate_spam@{name}"]) for name in ("first", "mean")}
    assert after["first"] == before["first"]
    assert after["mean"] != before["mean"]
