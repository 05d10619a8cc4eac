import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stages import tokenize

REPOSITORY = Path(__file__).resolve().parents[3]
STAGE = '''"""Do one thing."""

from pathlib import Path

import elsewhere
from scratchlm.run.errors import UserError
from scratchlm.run.files import read_json, write_text
from scratchlm.run.context import Run
from scratchlm.run.stage import start


def main(run: Run, *, params: Path, model_folder: Path) -> None:
    {body}


if __name__ == "__main__":
    start(main)
'''


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A clone, so to speak, in a folder that has this project's name."""
    folder = tmp_path / "scratchlm" / "clone"
    (folder / "stages").mkdir(parents=True)
    (folder / "stages" / "__init__.py").touch()
    (folder / "elsewhere.py").write_text("def fail():\n    raise ValueError('a library failed')\n")
    return folder


def run_stage(workplace: Path, body: str, *options: str) -> subprocess.CompletedProcess[str]:
    (workplace / "stages" / "example.py").write_text(STAGE.format(body=body))
    command = [sys.executable, "-m", "stages.example", *options]
    return subprocess.run(command, cwd=workplace, capture_output=True, text=True)


ALL = ("--params", "p.yaml", "--model-folder", "m", "--log", "logs/example.jsonl")


def test_options_reach_main_as_paths_and_a_line_is_logged(workplace: Path) -> None:
    done = run_stage(workplace, "write_text(model_folder / 'a', repr(params))", *ALL)
    assert done.returncode == 0 and re.fullmatch(r"example: \d+\.\d s\n", done.stderr)
    assert (workplace / "m" / "a").read_text() == "PosixPath('p.yaml')"
    (line,) = (workplace / "logs" / "example.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert set(record) == {"stage", "seconds", "peak_memory_bytes"}
    assert record["stage"] == "example"
    assert 1 << 20 < record["peak_memory_bytes"] < 1 << 36
    assert record["seconds"] >= 0


def test_the_last_line_of_a_stage_has_its_seconds_and_those_metrics_that_it_names(workplace: Path) -> None:
    (workplace / "m.json").write_text('{"val": {"loss": 3.45187}, "responses": 1100}')
    text = STAGE.format(body="pass").replace("start(main)", 'start(main, "val.loss", "test.loss", "responses")')
    (workplace / "stages" / "example.py").write_text(text.replace("model_folder", "metrics"))
    options = ["--params", "p.yaml", "--metrics", "m.json", "--log", "logs/example.jsonl"]
    command = [sys.executable, "-m", "stages.example", *options]
    done = subprocess.run(command, cwd=workplace, capture_output=True, text=True)
    assert re.fullmatch(r"example: \d+\.\d s, val\.loss 3\.452, responses 1,100\n", done.stderr)


def test_the_end_of_a_stage_does_not_wait_for_a_search_for_garbage(workplace: Path) -> None:
    body = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > len(gc.get_objects())))"
    assert run_stage(workplace, body, *ALL).stdout == "True\n"


def test_a_stage_can_write_to_the_log(workplace: Path) -> None:
    done = run_stage(workplace, "run.record({'step': 1})", *ALL)
    assert done.returncode == 0
    records = [json.loads(line) for line in (workplace / "logs" / "example.jsonl").read_text().splitlines()]
    assert [set(record) & {"step", "stage"} for record in records] == [{"step"}, {"stage"}]


@pytest.mark.long
@pytest.mark.parametrize("name", ["SCRATCHLM_WORKERS", "SCRATCHLM_WORKER_SECONDS", "SCRATCHLM_RESUME_SECONDS"])
def test_a_wrong_variable_is_named_before_any_work(workplace: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "-1")
    done = run_stage(workplace, "print('work')", *ALL)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(f"example: {name} is '-1', but must be [^;]+; correct or unset it\n", done.stderr)


@pytest.mark.long
@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("raise UserError('wrong; do this')", "example: wrong; do this\n"),
        ("read_json(Path('data/x'))", "example: data/x: no such file; `dvc repro` makes every artifact, "
         "`dvc checkout` restores cached ones\n"),
        ("read_json(params)", "example: p.yaml: no such file; check the path\n"),
        ("write_text(Path('/proc/x'), '')", "example: /proc/x: no such file or directory; correct that and run this "
         "again\n"),
        ("params.open('w').close(); write_text(params / 'x', '')", "example: p.yaml: file exists; correct that and run "
         "this again\n"),
        ("raise MemoryError('Unable to allocate 8 TiB')", "example: out of memory (Unable to allocate 8 TiB); lower "
         "batch_size or the size of the model\n"),
        ("raise KeyboardInterrupt", "example: interrupted; no partial output was left. "
         "`dvc repro` runs this stage again\n"),
    ],
    ids=["stage", "artifact", "other file", "no folder", "a file as folder", "memory", "interrupt"],
)  # fmt: skip
def test_what_the_user_must_act_on_is_one_line_and_status_1(workplace: Path, body: str, line: str) -> None:
    done = run_stage(workplace, body, *ALL)
    assert (done.returncode, done.stderr) == (1, line)
    assert not (workplace / "logs").exists()


@pytest.mark.long
@pytest.mark.parametrize(
    ("body", "last"),
    [
        ("elsewhere.fail()", "ValueError: a library failed"),
        ("{}['x']", "KeyError: 'x'"),
        ("assert params is None", "AssertionError"),
    ],
    ids=["other library", "key", "assert"],
)
def test_a_defect_keeps_its_traceback(workplace: Path, body: str, last: str) -> None:
    done = run_stage(workplace, body, *ALL)
    assert done.returncode == 1
    first, second, *_, end = done.stderr.splitlines()
    assert re.fullmatch(r"example: this is a defect of scratchlm .*; please report it, with the lines below, .*", first)
    assert (second, end) == ("Traceback (most recent call last):", last)


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "the following arguments are required: --params, --model-folder, --log"),
        (ALL[:-2], "the following arguments are required: --log"),
        ((*ALL, "--modle", "x"), "unrecognized arguments: --modle x"),
    ],
)
def test_wrong_options_are_named_before_any_work(workplace: Path, options: tuple[str, ...], message: str) -> None:
    done = run_stage(workplace, "write_text(Path('touched'), '')", *options)
    assert done.returncode == 2
    assert f"python -m stages.example: error: {message}" in done.stderr
    assert not (workplace / "touched").exists()


@pytest.mark.parametrize(("path", "package"), [("", "scratchlm"), ("src", "pyarrow")])
def test_the_first_stage_names_the_environment_that_lacks_a_package(path: str, package: str) -> None:
    command = [sys.executable, "-S", "-m", "stages.code"]  # without installed packages
    done = subprocess.run(command, cwd=REPOSITORY, env={"PYTHONPATH": path}, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"code: {sys.executable} has no package {package}; activate this project's environ")


@pytest.mark.long
@pytest.mark.parametrize("option", ["--params", "--model-folder", "--log"])
@pytest.mark.parametrize("path", ["/proc/x", "/proc/a/b", "elsewhere.py/x"])
def test_an_output_that_cannot_be_made_is_refused_before_any_work(workplace: Path, option: str, path: str) -> None:
    before = sorted(workplace.rglob("*"))
    done = run_stage(workplace, "write_text(Path('touched'), '')", *ALL, option, path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith(f"example: {path} does not exist and cannot be made in {Path(path).parts[0]}")
    assert {path for path in workplace.rglob("*") if "__pycache__" not in path.parts} - {*before} == {
        workplace / "stages" / "example.py"
    }


def test_a_mistake_in_params_is_one_line_of_a_real_stage(tmp_path: Path) -> None:
    text = (REPOSITORY / "profiles" / "sample.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("shard_tokens: 10000000", "shard_tokens: 0"))
    names = {*inspect.signature(tokenize.main).parameters, "log"} - {"params", "run"}
    options = [part for name in names for part in (f"--{name.replace('_', '-')}", str(tmp_path / name))]
    done = subprocess.run(
        [sys.executable, "-m", "stages.tokenize", "--params", str(tmp_path / "params.yaml"), *options],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == (
        "tokenize: params.yaml: tokenize.corpus.shard_tokens is 0: must be greater than or equal to 1000\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["params.yaml"]
