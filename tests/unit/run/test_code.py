"""What code a stage runs, in a small project: a library `lib`, scripts in `stages`, a lock file."""

import ast
import hashlib
import importlib.metadata
from pathlib import Path

import pytest

from scratchlm.run import code
from scratchlm.run.code import (
    imported_names,
    installed_version,
    refuse_foreign_library,
    refuse_other_code,
    stage_code,
    stage_scripts,
)
from scratchlm.run.errors import UserError
from scratchlm.run.files import write_json

REPOSITORY = Path(__file__).resolve().parents[3]
LOCK = "# pins\nnumpy==2.0\nScikit_Learn==1.5\nPyYAML==6.0\ntorch==2.13.0\nunused==1\n"
FILES = {
    "stages/__init__.py": "",
    "stages/one.py": "import json\nfrom pathlib import Path\nfrom lib.direct import thing\n",
    "stages/two.py": "import lib.alone\nfrom lib.room import inner\n",
    "src/lib/__init__.py": "",
    "src/lib/direct.py": "import numpy as np\nimport lib.deeper\nthing = 1\n",
    "src/lib/deeper.py": "def f():\n    import sklearn.metrics\n    from lib import lazy\n",
    "src/lib/lazy.py": "PAGE = 'page.jinja'\n",
    "src/lib/page.jinja": "<html>",
    "src/lib/other.jinja": "<html>",
    "src/lib/alone.py": "import yaml\n",
    "src/lib/room/__init__.py": "",
    "src/lib/room/inner.py": "import lib.direct, lib.room.inner\n",
    "requirements.lock": LOCK,
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def code_of(stage: str) -> dict[str, dict[str, str]]:
    imported_names.cache_clear()  # it remembers files by path
    return stage_code(Path("stages", f"{stage}.py"), Path("src/lib"), Path("requirements.lock"))


def test_it_is_the_script_and_all_that_it_imports_lazily_or_through_others(project: Path) -> None:
    assert list(code_of("one")["files"]) == [
        "src/lib/deeper.py", "src/lib/direct.py", "src/lib/lazy.py", "src/lib/page.jinja", "stages/one.py",
    ]  # fmt: skip
    assert list(code_of("two")["files"]) == [
        "src/lib/alone.py", "src/lib/deeper.py", "src/lib/direct.py", "src/lib/lazy.py", "src/lib/page.jinja",
        "src/lib/room/inner.py", "stages/two.py",
    ]  # fmt: skip


def test_the_hash_is_that_of_the_files_bytes(project: Path) -> None:
    expected = hashlib.sha256(FILES["src/lib/lazy.py"].encode()).hexdigest()
    assert code_of("one")["files"]["src/lib/lazy.py"] == expected


def test_packages_come_with_their_locked_versions_under_the_names_of_the_lock(project: Path) -> None:
    assert code_of("one")["packages"] == {"numpy": "2.0", "scikit-learn": "1.5"}
    assert code_of("two")["packages"] == {"numpy": "2.0", "pyyaml": "6.0", "scikit-learn": "1.5"}


EDITS = {
    "the script": ("stages/one.py", {"one"}),
    "a file that it imports": ("src/lib/direct.py", {"one", "two"}),
    "a file that is imported lazily": ("src/lib/lazy.py", {"one", "two"}),
    "a template": ("src/lib/page.jinja", {"one", "two"}),
    "a file of one stage only": ("src/lib/alone.py", {"two"}),
    "a template that nothing names": ("src/lib/other.jinja", set()),
    "a package marker": ("src/lib/room/__init__.py", set()),
}


@pytest.mark.parametrize("what", EDITS)
def test_an_edit_changes_the_code_of_exactly_the_stages_that_run_it(project: Path, what: str) -> None:
    file, expected = EDITS[what]
    before = {stage: code_of(stage) for stage in ("one", "two")}
    (project / file).write_text(FILES[file] + "# edited\n")
    assert {stage for stage in before if code_of(stage) != before[stage]} == expected
    (project / file).write_text(FILES[file])
    assert {stage: code_of(stage) for stage in before} == before


def test_another_version_of_a_package_changes_the_code_of_its_users_only(project: Path) -> None:
    before = {stage: code_of(stage) for stage in ("one", "two")}
    (project / "requirements.lock").write_text(LOCK.replace("PyYAML==6.0", "PyYAML==6.1").replace("unused==1", ""))
    assert code_of("one") == before["one"]
    assert code_of("two")["packages"]["pyyaml"] == "6.1"


def test_a_package_that_the_lock_does_not_pin_is_refused(project: Path) -> None:
    (project / "src/lib/alone.py").write_text("def f():\n    import left_pad.core\n")
    with pytest.raises(UserError) as caught:
        code_of("two")
    assert str(caught.value) == (
        "stages/two.py needs the package left-pad, which requirements.lock does not pin; "
        "add it there, or remove the import"
    )


def test_a_folder_without_stages_is_refused(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").touch()
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="no stage's script in .*; run this in the folder that has dvc.yaml"):
            stage_scripts(folder)


def test_tensorflow_and_tensorflow_cpu_are_one_package(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "src/lib/alone.py").write_text("import tensorflow\n")
    found = []
    for pins in ("tensorflow==2.1\n", "tensorflow-cpu==2.1\n", "tensorflow-cpu==2.1; linux\ntensorflow==2.1; other\n"):
        (project / "requirements.lock").write_text(LOCK + pins)
        found.append(code_of("two")["packages"])
    assert found == 3 * [{"numpy": "2.0", "scikit-learn": "1.5", "tensorflow": "2.1"}]
    for installed in ("tensorflow", "tensorflow-cpu"):
        monkeypatch.setattr(code.importlib.metadata, "version", only(installed, "2.1"))
        assert installed_version("tensorflow") == "2.1"


def only(package: str, version: str):
    """In place of importlib.metadata.version, where one package is installed."""

    def found(name: str) -> str:
        if name != package:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    return found


def test_a_lock_is_read_without_comments_markers_and_spelling(project: Path) -> None:
    (project / "src/lib/alone.py").write_text("import typing_extensions\n")
    pins = "# PyYAML==1\n\nTyping_Extensions==4.1 ; python_version > '3'\nnumpy==2.0\nscikit-learn==1.5\n"
    (project / "requirements.lock").write_text(pins)
    assert code_of("two")["packages"] == {"numpy": "2.0", "scikit-learn": "1.5", "typing-extensions": "4.1"}
    assert code_of("one")["packages"] == {"numpy": "2.0", "scikit-learn": "1.5"}


def test_the_code_that_was_written_down_is_accepted(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(Path("one.json"), code_of("one"))
    monkeypatch.setattr(code, "installed_version", {"numpy": "2.0", "scikit-learn": "1.5"}.get)
    refuse_other_code(Path("one.json"))


def test_a_library_from_outside_the_project_is_refused(project: Path) -> None:
    refuse_foreign_library(REPOSITORY)
    with pytest.raises(UserError) as caught:
        refuse_foreign_library(project)
    assert str(caught.value).startswith(
        f"scratchlm is imported from {Path(code.__file__).parents[1]}, but this project's is {project.resolve()}/src/"
    )


@pytest.mark.parametrize("edit", [lambda path: path.write_text("thing = 2\n"), Path.unlink])
def test_a_file_that_has_changed_since_is_refused(project: Path, edit, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(Path("one.json"), code_of("one"))
    monkeypatch.setattr(code, "installed_version", {"numpy": "2.0", "scikit-learn": "1.5"}.get)
    edit(project / "src/lib/direct.py")
    with pytest.raises(UserError, match=r"^src/lib/direct.py has changed since the stage `code` ran; run `dvc repro`"):
        refuse_other_code(Path("one.json"))


def test_another_version_than_the_locks_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(Path("one.json"), code_of("one"))
    monkeypatch.setattr(code, "installed_version", {"numpy": "2.0", "scikit-learn": "1.6"}.get)
    with pytest.raises(UserError, match=r"^scikit-learn 1.6 is installed, but requirements.lock says 1.5; install"):
        refuse_other_code(Path("one.json"))


def test_a_package_that_is_optional_may_be_missing_but_not_of_another_version(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code, "OPTIONAL", {"scikit-learn"})
    write_json(Path("one.json"), code_of("one"))
    monkeypatch.setattr(code, "installed_version", {"numpy": "2.0", "scikit-learn": "none"}.get)
    refuse_other_code(Path("one.json"))
    monkeypatch.setattr(code, "installed_version", {"numpy": "2.0", "scikit-learn": "1.6"}.get)
    with pytest.raises(UserError, match=r"^scikit-learn 1.6 is installed, but requirements.lock says 1.5"):
        refuse_other_code(Path("one.json"))
    monkeypatch.setattr(code, "installed_version", {"numpy": "none", "scikit-learn": "1.5"}.get)
    with pytest.raises(UserError, match=r"^numpy none is installed"):
        refuse_other_code(Path("one.json"))


def test_a_local_part_of_a_version_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code.importlib.metadata, "version", only("torch", "2.13.0+cpu"))
    assert installed_version("torch") == "2.13.0"
    assert installed_version("no-such-package") == "none"


@pytest.mark.long
def test_this_project_has_no_relative_import_which_would_go_unseen() -> None:
    for path in [*(REPOSITORY / "src").rglob("*.py"), *(REPOSITORY / "stages").glob("*.py")]:
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        assert not [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level], path


def test_the_processes_that_a_stage_starts_are_among_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    found = stage_code(Path("stages/load_gpt2.py"), Path("src/scratchlm"), Path("requirements.lock"))
    assert "src/scratchlm/run/watchdog.py" in found["files"]
    assert "src/scratchlm/formats/tensorflow_reader.py" in found["files"]
    assert "tensorflow" in found["packages"]
