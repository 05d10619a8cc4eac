"""Clones of this repository, in which tests run git, dvc and scratchlm as a user does.

A clone has what is committed, so commit before you run such a test.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

from tests.forked import PROGRAMS, forking

REPOSITORY = Path(__file__).resolve().parents[1]
SCRATCHLM = (sys.executable, "-m", "scratchlm.cli.main")
IDENTITY = ("-c", "user.name=Someone", "-c", "user.email=someone@example.org")
AUTHOR = {
    f"GIT_{role}_{what}": value
    for role in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "Someone"), ("EMAIL", "someone@example.org"))
}  # the same, for a git that another program starts
# Parameters that shorten the sample's training to a second, for tests of the pipeline rather than of what it learns.
# In float32, which is faster, and whose results depend on the processor. A tiny model is pretrained and finetuned
MODEL = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))["model"]
FEW_STEPS: dict[str, object] = {
    "precision": "float32",
    "threads": 1,
    "model": MODEL | {"size": "custom", "custom": {"n_layers": 1, "n_heads": 2, "emb_dim": 16}},
    "finetune_spam.base": "pretrain",
    "finetune_instruct.base": "pretrain",
    "tokenize.corpus.train_fraction": 0.98,  # the val split is measured several times
    "evaluation.max_rows": 8,
    "pretrain.epochs": 0.05,
    "pretrain.warmup_steps": 1,
    "finetune_spam.epochs": 0.2,
    "finetune_spam.warmup_steps": 1,
    "finetune_instruct.epochs": 0.2,
    "finetune_instruct.warmup_steps": 1,
    "finetune_preference.epochs": 0.1,
    "finetune_preference.warmup_steps": 1,
    "reward_model.epochs": 0.1,
    "reward_model.warmup_steps": 1,
    "reinforce.responses_per_prompt": 2,
    "reinforce.max_new_tokens": 4,
    "reinforce.epochs": 0.1,
    "reinforce.warmup_steps": 1,
    "generate.max_new_tokens": 4,
    "variants": {"instruct": "finetune_instruct"},
}
# The base is the model that `pretrain` makes: no TensorFlow has to start
WITHOUT_GPT2 = {"gpt2_sizes": [], "finetune_spam.base": "pretrain", "finetune_instruct.base": "pretrain"}


def environment(clone: Path, **changes: str) -> dict[str, str]:
    """The environment of a command in the clone: its own library first, no mirror unless `changes` names one.

    numpy's OpenBLAS chooses its kernels by the processor, also where the tests were given others: exact has one result.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    left_out = {"SCRATCHLM_MIRROR", "OPENBLAS_CORETYPE"}
    inherited = {name: value for name, value in os.environ.items() if name not in left_out}
    own = {"PATH": path, "PYTHONPATH": str(clone / "src"), "OMP_WAIT_POLICY": "passive"}  # idle threads leave the core
    return inherited | own | changes


def run(clone: Path, *command: str, ok: bool = True, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the clone and assert that it succeeds, or fails if `ok` is False."""
    variables = environment(clone, **changes)
    program = "scratchlm" if command[:3] == SCRATCHLM else command[0]
    if program in PROGRAMS and "PYTHONHASHSEED" not in changes:  # which concerns a process from its start
        words = command[3:] if command[:3] == SCRATCHLM else command[1:]
        command = (str(forking(variables) / program), *words)
    done = subprocess.run(command, cwd=clone, env=variables, capture_output=True, text=True)
    assert (done.returncode == 0) == ok, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def make_clone(folder: Path, changes: dict[str, object] | None = None) -> Path:
    """Clone HEAD into `folder` and commit `changes` of parameters there."""
    run(REPOSITORY, "git", "clone", "-q", str(REPOSITORY), str(folder))
    if changes:
        for key, value in changes.items():
            set_parameter(folder, key, value)
        commit(folder, "Change parameters")
    return folder


def keep_stages(clone: Path, *names: str) -> None:
    """Cut the pipeline down to some stages, of which none is built: for tests that need no other. Not committed."""
    pipeline = yaml.safe_load((clone / "dvc.yaml").read_text())
    stages = {name: pipeline["stages"][name] for name in names}
    (clone / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    (clone / "dvc.lock").unlink()


def lend_environment(clone: Path) -> None:
    """Give the clone a .venv that make takes for its own: the programs of the environment that runs the tests."""
    programs = clone / ".venv" / "bin"
    programs.mkdir(parents=True)
    for program in (Path(sys.prefix) / "bin").iterdir():
        (programs / program.name).symlink_to(program)
    (programs / "pip").unlink()
    (programs / "pip").write_text(f"{programs}/ is where make looks for it\n")
    for name in ("lib", "pyvenv.cfg"):
        (clone / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    (clone / ".venv" / "ready").touch()


def fork_in(clone: Path) -> None:
    """Let `dvc` and `scratchlm` of the lent environment be forked, also where a shell or make calls them."""
    for program in PROGRAMS:
        (clone / ".venv" / "bin" / program).unlink()
        (clone / ".venv" / "bin" / program).symlink_to(forking(environment(clone)) / program)


def commit(clone: Path, message: str, *, empty: bool = False) -> None:
    run(clone, "git", "add", "-A")
    run(clone, "git", *IDENTITY, "commit", "-qm", message, *(["--allow-empty"] if empty else []))


def results(clone: Path) -> dict[str, bytes]:
    """The content of dvc.lock and of every file in metrics/, by path."""
    files = [clone / "dvc.lock", *sorted((clone / "metrics").rglob("*.*"))]
    return {file.relative_to(clone).as_posix(): file.read_bytes() for file in files}


def stages_run(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The stages that a `dvc repro` ran, in order."""
    return re.findall(r"Running stage '([^']+)'", done.stdout)


def set_parameter(clone: Path, key: str, value: object) -> None:
    """Change one parameter. Comments of the file are lost."""
    path = clone / "params.yaml"
    params = yaml.safe_load(path.read_text())
    section = params
    *outer, last = key.split(".")
    for name in outer:
        section = section[name]
    assert last in section
    section[last] = value
    path.write_text(yaml.safe_dump(params))
