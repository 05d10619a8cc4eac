"""The pipeline of the sample with few steps, in a clone of this repository: what reruns, and what is said.

`make verify` rebuilds the sample itself. It tests what is committed: commit before you run it.
"""

import contextlib
import fcntl
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import termios
from pathlib import Path

import pytest
from dvc.repo import Repo

from scratchlm.run.params import load_yaml
from tests.clones import SCRATCHLM, commit, environment, run, set_parameter, stages_run
from tests.forked import forking

PREFERENCE = "finetune_preference@dpo"
REWARD = "reward_model@bradley_terry"
REINFORCE = "reinforce@grpo"
ANSWERS = ["generate@instruct"]
STAGES = [
    "code", "preflight", "download", "tokenize", "pretrain", "load_gpt2@nano", "finetune_spam", "baseline_spam",
    "finetune_instruct", PREFERENCE, REWARD, REINFORCE, *ANSWERS, "judge", "report",
]  # fmt: skip
UP_TO_DATE = "Data and pipelines are up to date."


def changed_stages(clone: Path) -> set[str]:
    """As `dvc status` says, which takes longer to start."""
    with contextlib.chdir(clone), Repo() as repo:
        return set(repo.status())


def restore(clone: Path) -> None:
    run(clone, "git", "checkout", "-q", "--", ".")
    with contextlib.chdir(clone), Repo() as repo:
        repo.checkout()


@pytest.fixture(scope="module")
def clone(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(built, tmp_path_factory.mktemp("clones") / "scratchlm", symlinks=True)


@pytest.fixture
def workspace(clone):
    """The clone, restored to its commit after the test."""
    yield clone
    restore(clone)


@pytest.fixture
def inputs(clone):
    """The clone for a test that runs no stage: only what git has is restored, which takes less time."""
    yield clone
    run(clone, "git", "checkout", "-q", "--", ".")


def on_a_terminal(clone: Path, *words: str) -> list[str]:
    """Run scratchlm on a terminal of 80 columns; return every line that it shows there, those overwritten, too."""
    variables = environment(clone)
    command = [forking(variables) / "scratchlm", *words]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    shown = b""
    with subprocess.Popen(command, cwd=clone, env=variables, stdin=theirs, stdout=theirs, stderr=theirs) as it:
        os.close(theirs)
        with contextlib.suppress(OSError):  # how Linux says that nobody writes any more
            while chunk := os.read(ours, 1 << 16):
                shown += chunk
    os.close(ours)
    assert it.returncode == 0, shown.decode()[-3000:]
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[\d;]*[A-Za-z]", "", shown.decode()))


def test_a_second_repro_does_nothing(clone):
    done = run(clone, "dvc", "repro")
    assert UP_TO_DATE in done.stdout
    assert stages_run(done) == []


TRAININGS = ("pretrain", "finetune_spam", "finetune_instruct", PREFERENCE, REWARD, REINFORCE)
CONCERNED = [
    ("sources.corpus", "the-verdict", {"download"}),
    ("tokenize.messages.balance", False, {"tokenize"}),
    ("pretrain.learning_rate", 0.001, {"pretrain"}),
    ("model.dropout", 0.1, {"pretrain"}),
    ("evaluation.max_rows", 16, {"load_gpt2@nano", *TRAININGS}),
    ("finetune_spam.position", "mean", {"finetune_spam"}),
    ("finetune_spam.base", "gpt2-nano", {"finetune_spam"}),
    ("finetune_instruct.mask_instruction", False, {"finetune_instruct"}),
    ("finetune_preference.beta", 0.5, {PREFERENCE}),
    ("generate.max_new_tokens", 16, {*ANSWERS}),
    ("judge.controls", 3, {"judge"}),
    ("reward_model.learning_rate", 0.001, {REWARD}),
    ("reinforce.kl_coefficient", 0.1, {REINFORCE}),
    ("reinforce_runs.grpo", {"reward": "models/reward_model/bradley_terry", "unfinished_reward": -3.0}, {REINFORCE}),
    ("seed", 7, {"tokenize", *TRAININGS, *ANSWERS, "judge"}),
    ("threads", 2, {"load_gpt2@nano", *TRAININGS, *ANSWERS}),
]


@pytest.mark.parametrize(("key", "value", "stages"), CONCERNED, ids=[key for key, *_ in CONCERNED])
def test_a_changed_parameter_concerns_exactly_its_stages(inputs, key, value, stages):
    if "." in key:
        set_parameter(inputs, key, value)
    else:
        text = (inputs / "params.yaml").read_text()
        (inputs / "params.yaml").write_text(re.sub(rf"^{key}: \S+", f"{key}: {value}", text, flags=re.MULTILINE))
    # preflight checks the whole file and report shows it
    assert changed_stages(inputs) == stages | {"preflight", "report"}


def users(clone: Path, kind: str, name: str) -> set[str]:
    """The stages whose code has a file or a package, by what the stage `code` wrote."""
    folder = clone / "data" / "code"
    scripts = {stage: stage.partition("@")[0] for stage in STAGES if stage != "code"}
    found = {stage: json.loads((folder / f"{script}.json").read_text()) for stage, script in scripts.items()}
    return {stage for stage, code in found.items() if name in code[kind]}


def edit(path: Path, old: str = "", new: str = "# edited\n") -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new) if old else text + new)


EDITED = ["stages/generate.py", "src/scratchlm/run/files.py", "src/scratchlm/formats/openai.py"]


@pytest.mark.parametrize("file", EDITED)
def test_an_edit_concerns_exactly_the_stages_whose_code_has_the_file(workspace, file):
    concerned = users(workspace, "files", file)
    edit(workspace / file)
    assert changed_stages(workspace) == {"code"}
    assert stages_run(run(workspace, "dvc", "repro", "code")) == ["code"]
    assert changed_stages(workspace) == concerned != set()


def test_an_edit_reruns_its_stages_and_is_taken_back_from_the_run_cache(workspace):
    file = workspace / "src" / "scratchlm" / "report" / "page.py"
    before = file.read_text()
    edit(file)
    assert stages_run(run(workspace, "dvc", "repro")) == ["code", "report"]
    file.write_text(before)
    assert stages_run(run(workspace, "dvc", "repro")) == []
    assert changed_stages(workspace) == set()


def test_an_edit_of_a_docstring_that_no_stage_imports_reruns_nothing_but_the_stage_code(workspace):
    file = "src/scratchlm/compare/changes.py"
    assert users(workspace, "files", file) == set()
    edit(workspace / file, '"""', '""" Edited: ')
    assert stages_run(run(workspace, "dvc", "repro")) == ["code"]
    assert changed_stages(workspace) == set()


def test_a_stage_by_itself_refuses_code_that_has_changed_since_the_stage_code_ran(workspace):
    edit(workspace / "src/scratchlm/judge/scoring.py")
    assert changed_stages(workspace) == {"code"}
    done = run(workspace, "dvc", "repro", "-f", "-s", "judge", ok=False)
    assert (
        "judge: src/scratchlm/judge/scoring.py has changed since the stage `code` ran; run `dvc repro`" in done.stderr
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("package", ["torch", "tensorflow", "matplotlib"])
def test_another_version_of_a_package_concerns_the_stages_that_use_it_and_must_be_installed(workspace, package):
    concerned = users(workspace, "packages", package)
    lock = workspace / "requirements.lock"
    text, n = re.subn(rf"(?m)^({package}(?:-cpu)?)==[\w.]+", r"\1==0.1", lock.read_text())
    assert n
    lock.write_text(text)
    run(workspace, "dvc", "repro", "code")
    assert changed_stages(workspace) == concerned != set()
    first = max(concerned)
    done = run(workspace, "dvc", "repro", "-s", first, ok=False)
    assert re.search(rf"{first}: {package} [\d.]+ is installed, but requirements\.lock says 0\.1; ", done.stderr)
    assert "Traceback" not in done.stderr


def test_a_package_that_the_lock_does_not_pin_stops_before_any_work(workspace):
    edit(workspace / "src/scratchlm/report/page.py", "", "def page():\n    import left_pad\n")
    done = run(workspace, "dvc", "repro", ok=False)
    assert stages_run(done) == ["code"]
    assert "code: stages/report.py needs the package left-pad, which requirements.lock does not pin; " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_changed_judge_reruns_the_judge_and_the_report_only(workspace):
    set_parameter(workspace, "judge.controls", 3)
    shown = on_a_terminal(workspace, "repro")
    text = "\n".join(shown)
    assert re.search(
        rf"^2 of {len(STAGES)} stages may have to run:\n   1  judge +\d+ s  judge.* changed", text, re.MULTILINE
    )
    assert re.search(r"^   2  report +\d+ s  ", text, re.MULTILINE)
    assert [line for line in shown if line.startswith("stage ")] == ["stage 1 of 2: judge", "stage 2 of 2: report"]
    assert re.search(r"^judge: [\d.]+ s, instruct.mean_score [\d.]+$", text, re.MULTILINE)
    ours = text[text.index("stages may have") :].partition("\nBuilt from other inputs")[0]
    assert max(map(len, ours.splitlines())) <= 80 and "> python" not in ours
    again = run(workspace, *SCRATCHLM, "repro").stdout
    assert again.startswith(f"All {len(STAGES)} stages are up to date.\n\n") and "\nNext:\n" in again


def test_a_comment_in_params_reruns_no_computing_stage(workspace):
    with (workspace / "params.yaml").open("a") as file:
        file.write("# a remark\n")
    assert stages_run(run(workspace, "dvc", "repro")) == ["preflight", "report"]


def test_branches_are_compared_by_parameters_metrics_and_plots(workspace):
    run(workspace, "git", "switch", "-q", "-c", "faster")
    before = load_yaml(workspace / "params.yaml")["finetune_spam"]["learning_rate"]
    set_parameter(workspace, "finetune_spam.learning_rate", 0.01)
    run(workspace, "dvc", "repro")
    commit(workspace, "Learn faster")
    main = run(workspace, "git", "rev-parse", "HEAD~1").stdout.strip()

    parameters = json.loads(run(workspace, "dvc", "params", "diff", main, "HEAD", "--json").stdout)
    (change,) = parameters["params.yaml"].values()
    assert [*parameters["params.yaml"]] == ["finetune_spam.learning_rate"]
    assert (change["old"], change["new"]) == (before, 0.01)
    difference = json.loads(run(workspace, "dvc", "metrics", "diff", main, "HEAD", "--json").stdout)
    assert difference["metrics/finetune_spam.json"]["test.loss"]["diff"] != 0
    assert set(difference) == {"metrics/finetune_spam.json", "metrics/baseline_spam.json"}
    run(workspace, "dvc", "plots", "diff", main, "HEAD")
    page = (workspace / "dvc_plots" / "index.html").read_text()
    assert main[:7] in page
    shutil.rmtree(workspace / "dvc_plots")
    run(workspace, "git", "checkout", "-q", "--detach", main)


def test_a_mistake_in_the_last_section_stops_before_any_work(workspace):
    path = workspace / "params.yaml"
    path.write_text(path.read_text().replace("  controls: 10", "  controlls: 10"))
    done = run(workspace, "dvc", "repro", ok=False)
    assert stages_run(done) == ["preflight"]
    assert "unknown key controlls (did you mean controls?)" in done.stderr
    assert "Traceback" not in done.stderr
    done = run(workspace, *SCRATCHLM, "repro", ok=False)
    assert done.stdout == "" and "unknown key controlls" in done.stderr
    assert done.stderr.endswith("stopped at 'preflight', which says above why; run this again to continue there\n")


def test_the_book_profile_without_a_network_ends_in_one_sentence(workspace):
    shutil.copy(workspace / "profiles" / "book.yaml", workspace / "params.yaml")
    nowhere = "http://127.0.0.1:9"  # the discard port, where nothing listens
    done = run(workspace, "dvc", "repro", "download", ok=False, HTTPS_PROXY=nowhere, HTTP_PROXY=nowhere, NO_PROXY="")
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("download: ")]
    assert "https://" in sentence
    assert "SCRATCHLM_MIRROR" in sentence
    assert not (workspace / "data" / "raw").exists()
    left = [p for p in workspace.rglob("*") if p.name.endswith((".tmp", ".part")) and ".git" not in p.parts]
    assert left == []


@pytest.mark.parametrize("command", [("repro",), ("metrics", "show"), ("params", "diff")])
def test_dvc_leaves_no_trace_of_itself_in_git(clone, command):
    run(clone, "dvc", *command)
    untracked = run(clone, "git", "status", "--porcelain", "--untracked-files=all").stdout
    assert [line for line in untracked.splitlines() if line.startswith("??")] == []
