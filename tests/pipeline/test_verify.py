"""`scratchlm verify` in clones of this repository, with a short training instead of the sample's.

It tests what is committed: commit before you run it.
"""

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from scratchlm.arithmetic.fingerprint import arithmetic_fingerprint
from scratchlm.compare.git import clone_environment
from scratchlm.run.errors import UserError
from scratchlm.run.files import read_json
from scratchlm.run.params import load_yaml
from scratchlm.verify.commit import chosen, read_commit
from scratchlm.verify.findings import Finding, Verification, verification_json, verification_text
from scratchlm.verify.rebuild import failure_in
from scratchlm.verify.verify import verify
from tests.clones import FEW_STEPS, commit, environment, make_clone, run, set_parameter
from tests.commands import scratchlm
from tests.forked import forking

OTHER_ARITHMETIC = {"ATEN_CPU_CAPABILITY": "avx2"}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:dvc")
STAGES = ["code", "preflight", "download", "tokenize", "pretrain"]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A clone in which everything up to `pretrain` was built and committed."""
    clone = make_clone(tmp_path_factory.mktemp("clones") / "scratchlm", FEW_STEPS)
    run(clone, "dvc", "repro", "pretrain")
    commit(clone, "Build")
    return clone


@pytest.fixture
def clone(built, tmp_path, monkeypatch) -> Iterator[Path]:
    """The same, put back into that state afterwards; temporary files of verify go to `tmp_path`/temporary."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.delenv("SCRATCHLM_MIRROR", raising=False)
    start = run(built, "git", "rev-parse", "HEAD").stdout.strip()
    yield built
    run(built, "git", "reset", "-q", "--hard", start)
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.fixture
def forked(monkeypatch) -> None:
    """`verify` in this process forks DVC and the stages, as `run` does, instead of starting them."""

    def run_dvc(clone: Path, *words: str, **variables: str) -> tuple[int, str]:
        given = clone_environment(clone) | variables
        done = subprocess.run([forking(given) / "dvc", *words], cwd=clone, env=given, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    monkeypatch.setattr("scratchlm.verify.rebuild.run_dvc", run_dvc)


def cached(clone: Path, path: str) -> Path:
    """The object of the cache that holds a file of the workspace."""
    md5 = run(clone, "md5sum", path).stdout.split()[0]
    return clone / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]


def flip_a_bit(path: Path) -> None:
    """Of safetensors, the last bit of the last weight."""
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)


def replace(path: Path, pattern: str, text: str) -> None:
    """Replace the one place that matches."""
    changed, n = re.subn(pattern, text, path.read_text())
    assert n == 1
    path.write_text(changed)


def faults(result: Verification) -> list[tuple[str, str, str]]:
    return [(fault.stage, fault.path, fault.verdict) for fault in result.faults]


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of each file outside git's own folder."""
    files = [path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def test_a_commit_without_results_is_refused_at_once(clone):
    (clone / "dvc.lock").unlink()
    commit(clone, "Remove the results")
    with pytest.raises(UserError, match="^HEAD has no results to verify, since no stage is in its dvc.lock; build"):
        read_commit(clone, "HEAD")


def test_what_was_built_is_verified_and_nothing_is_touched(clone, tmp_path, monkeypatch, capfd):
    (tmp_path / "config").write_text(f"[cache]\n    dir = {clone}/.dvc/cache\n")  # a cache that all clones share
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path))
    before = state(clone)
    result = verify(clone / "src", "HEAD", ["pretrain"])
    assert result.faults == []
    assert {finding.verdict for finding in result.findings} == {"identical"}
    assert list(dict.fromkeys(finding.stage for finding in result.findings)) == STAGES
    assert (result.machines, result.outside, result.start) == (None, (), None)
    n_files = len(list((clone / ".dvc" / "cache" / "files" / "md5").rglob("*")))
    assert result.n_copies > n_files / 2
    assert re.findall(r"Running stage '(\w+)'", capfd.readouterr().err) == STAGES
    assert state(clone) == before
    assert verification_text(result).endswith("Verified.")


@pytest.mark.usefixtures("forked")
def test_flipped_bits_an_edited_metric_and_a_foreign_lock_are_told_apart(clone):
    weights, losses = "data/models/pretrain/model.safetensors", "data/losses/pretrain.parquet"
    kept = {path: path.read_bytes() for path in (cached(clone, weights), clone / losses)}
    for path in kept:
        flip_a_bit(path)
    replace(clone / "metrics" / "tokenize.json", r'"vocab_size": 1024', '"vocab_size": 1025')
    replace(clone / "dvc.lock", r"(?s)(\n  pretrain:.*?path: data/tokens/corpus\n[^\n]*\n    +md5: )\w+", r"\g<1>abc")
    commit(clone, "Tamper")
    (clone / "README.md").write_text("not committed")
    try:
        result = verify(clone, "HEAD", ["pretrain"])
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
    assert faults(result) == [
        ("tokenize", "metrics/tokenize.json", "edited"),
        ("pretrain", "data/tokens/corpus", "stale"),
        ("pretrain", weights, "damaged"),
        ("pretrain", losses, "damaged"),
    ]
    edited, stale, in_cache, in_workspace = result.faults
    assert edited.detail == "differs from what dvc.lock records: vocab_size 1025 → 1024 when rebuilt"
    assert stale.detail == "built from a version that differs from the one in dvc.lock of the stage that makes it"
    assert re.fullmatch(r"\.dvc/cache/files/md5/\S+: 1 of \d+ tensors differ, by up to \S+ in \S+", in_cache.detail)
    assert 0 < in_cache.largest < 1e-6
    assert in_workspace.detail.startswith(f"{losses}: ")
    assert result.start is None
    assert any("Uncommitted changes are ignored" in remark for remark in result.remarks)


@pytest.mark.usefixtures("forked")
def test_a_changed_parameter_is_named_and_what_follows_from_it_is_measured(clone):
    set_parameter(clone, "tokenize.corpus.train_fraction", 0.8)
    commit(clone, "Forget to rebuild")
    result = verify(clone, "HEAD", ["pretrain"])
    found = {(fault.stage, fault.path): fault for fault in result.faults}
    assert found["tokenize", "params.yaml"].detail == (
        "built with tokenize.corpus.train_fraction 0.98, params.yaml says 0.8"
    )
    assert found["preflight", "params.yaml"].verdict == "stale"
    assert ("pretrain", "params.yaml") not in found
    weights = found["pretrain", "data/models/pretrain/model.safetensors"]
    assert weights.verdict == "different"
    assert re.fullmatch(r"\d+ of \d+ tensors differ, by up to \S+ in \S+; follows from tokenize", weights.detail)
    assert verification_text(result).endswith(
        "because of preflight, tokenize, pretrain. Results differ from stage tokenize on."
    )


def test_a_changed_seed_is_named_and_the_revision_before_it_is_verified(clone, tmp_path):
    replace(clone / "params.yaml", r"\bseed: 123", "seed: 7")
    commit(clone, "Another seed")
    command = (sys.executable, "-m", "scratchlm.cli.main", "verify", "--stages", "tokenize", "--format", "json")
    found = json.loads(run(clone, *command, ok=False, TMPDIR=str(tmp_path / "temporary")).stdout)
    stale = {finding["stage"]: finding["detail"] for finding in found["findings"] if finding["verdict"] == "stale"}
    assert stale["tokenize"] == "built with seed 123, params.yaml says 7"
    assert (found["verified"], found["start"]) == (False, "tokenize")
    in_a_hook = {"GIT_DIR": str(clone / ".git"), "GIT_INDEX_FILE": str(clone / ".git" / "index")}
    index = (clone / ".git" / "index").read_bytes()
    done = run(clone, *command, "--against", "HEAD~1", TMPDIR=str(tmp_path / "temporary"), **in_a_hook)
    assert (clone / ".git" / "index").read_bytes() == index
    before = json.loads(done.stdout)
    assert before["verified"]
    assert before["sha"] == run(clone, "git", "rev-parse", "HEAD~1").stdout.strip()


@pytest.mark.usefixtures("forked")
def test_a_changed_package_is_named_and_the_stage_that_refuses_it_fails(clone):
    replace(clone / "requirements.lock", r"\ntiktoken==\S+", "\ntiktoken==0.0.1")
    commit(clone, "Another version")
    result = verify(clone, "HEAD", ["tokenize"])
    stale, record, *others = result.faults
    assert (stale.stage, stale.path, stale.verdict) == ("code", "requirements.lock", "stale")
    assert (record.stage, record.verdict) == ("code", "different")
    assert re.search(r"packages\.tiktoken [\d.]+ → 0.0.1", " ".join(fault.detail for fault in (record, *others)))
    (failed,) = [fault for fault in others if fault.verdict == "failed"]
    assert (failed.stage, failed.path) == ("preflight", "")  # it imports every stage
    assert failed.detail.startswith("preflight: tiktoken ")
    assert {fault.verdict for fault in others if fault.stage == "tokenize"} == {"missing"}


@pytest.mark.usefixtures("forked")
def test_code_edited_after_the_build_is_named_and_its_harmless_effect_is_verified(clone):
    with (clone / "stages" / "tokenize.py").open("a") as script:
        script.write("# edited\n")
    commit(clone, "Edit code and forget to rebuild")
    result = verify(clone, "HEAD", ["tokenize"])
    users = [f"data/code/{name}.json" for name in ("preflight", "tokenize")]  # preflight imports every stage
    assert faults(result) == [("code", "stages", "stale"), *(("code", path, "different") for path in users)]
    stale, record, _ = result.faults
    assert stale.detail == "has changed since it was built"
    assert re.fullmatch(r"files\.stages/tokenize\.py \w+… → \w+…", record.detail)
    assert {f.verdict for f in result.findings if f.stage == "tokenize"} == {"identical"}


@pytest.mark.usefixtures("forked")
def test_a_workspace_with_another_build_is_not_damaged(clone):
    """As after `git switch` without `dvc checkout`."""
    set_parameter(clone, "tokenize.corpus.train_fraction", 0.8)
    run(clone, "dvc", "repro", "tokenize")
    run(clone, "git", "checkout", "-q", "--", ".")
    result = verify(clone, "HEAD", ["tokenize"])
    run(clone, "dvc", "checkout", "-q", "--allow-missing")
    assert result.faults == []
    assert any(re.match(r"Skipped \d+ workspace files that belong to another build", s) for s in result.remarks)


def needs_two_kinds_of_arithmetic() -> None:
    code = "from scratchlm.arithmetic.fingerprint import arithmetic_fingerprint as f; print(f())"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=os.environ | OTHER_ARITHMETIC, capture_output=True, text=True, check=True)
    if done.stdout.strip() == arithmetic_fingerprint():
        pytest.skip("this processor computes the same in both ways")


@pytest.mark.usefixtures("forked")
def test_on_another_kind_of_processor_metrics_pass_within_tolerance_only(clone, monkeypatch):
    needs_two_kinds_of_arithmetic()
    metrics = clone / "metrics" / "pretrain.json"
    wrong = read_json(metrics)["val"]["loss"] * 1.1
    replace(metrics, r'(?s)("val": \{.*?"loss": )[\d.]+', rf"\g<1>{wrong}")
    md5 = run(clone, "md5sum", "metrics/pretrain.json").stdout.split()[0]
    replace(clone / "dvc.lock", r"(metrics/pretrain\.json\n +hash: md5\n +md5: )\w+", rf"\g<1>{md5}")
    commit(clone, "A wrong metric that dvc.lock agrees with")
    for name, value in OTHER_ARITHMETIC.items():
        monkeypatch.setenv(name, value)
    result = verify(clone, "HEAD", ["pretrain"])
    assert faults(result) == [("pretrain", "metrics/pretrain.json", "different")]
    assert re.fullmatch(r"val\.loss \S+ → \S+ \(may differ by \S+\)", result.faults[0].detail)
    verdicts = {finding.path: finding.verdict for finding in result.findings}
    assert verdicts["data/models/pretrain"] == "not compared"
    assert verdicts["data/tokens/corpus"] == "identical"
    text = verification_text(result)
    assert re.search(r"Identical bits are not expected here: built with .+, rebuilt with AVX2 kernels \(.+\)\.", text)
    assert not re.search("[0-9a-f]{16}", text)


def test_what_comes_from_outside_is_known_with_what_follows_from_it(clone):
    def external() -> list[str]:
        return [stage.name for stage in read_commit(clone, "HEAD").stages if stage.external]

    assert not external()
    params = load_yaml(clone / "params.yaml")
    params["judge"] = load_yaml(clone / "profiles" / "book.yaml")["judge"]
    (clone / "params.yaml").write_text(yaml.safe_dump(params))
    commit(clone, "Judge with Ollama")
    assert external() == ["judge"]
    replace(clone / "dvc.yaml", r"\[ollama, openai, llama.cpp\]", "ollama")
    commit(clone, "As before there were two")
    assert external() == ["judge"]
    set_parameter(clone, "judge.backend", "llama.cpp")
    commit(clone, "Judge with llama.cpp")
    assert not external()
    run(clone, "git", "checkout", "HEAD~2", "dvc.yaml")
    commit(clone, "As it is")
    assert external() == ["judge"]


def test_a_stage_name_stands_for_each_of_its_items(clone):
    names = [stage.name for stage in chosen(read_commit(clone, "HEAD"), ["load_gpt2"])]
    assert names == ["code", "preflight", "download", "tokenize", "load_gpt2@nano"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_verification_leaves_nothing(clone, tmp_path, how):
    command = [sys.executable, "-m", "scratchlm.cli.main", "verify", "--stages", "tokenize"]
    variables = environment(clone, TMPDIR=str(tmp_path / "temporary"))
    with subprocess.Popen(command, cwd=clone, env=variables, stderr=subprocess.PIPE) as process:
        for line in process.stderr:
            if b"Running stage 'code'" in line:
                break
        assert list((tmp_path / "temporary").iterdir())
        process.send_signal(how)
        process.stderr.read()  # ends when all that it started has ended
    assert process.returncode != 0
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--stages", "tokenise"), "HEAD has no stage 'tokenise'; name one of code, preflight, download, "),
        (("--against", "nowhere"), "'nowhere' is not a revision of "),
        (("--against", "--all"), "'--all' is not a revision of "),
    ],
)
def test_a_mistake_in_the_command_is_one_sentence(clone, options, sentence):
    done = scratchlm(clone, "verify", *options)
    assert done.stderr.startswith(f"scratchlm: {sentence}")
    assert done.stderr.count("\n") == 1
    assert done.returncode == 1


def test_outside_a_repository_is_one_sentence(tmp_path):
    said = scratchlm(tmp_path, "verify").stderr
    assert re.fullmatch(f"scratchlm: {tmp_path} is not in a clone of the project; run scratchlm inside one\n", said)


RUN = "ERROR: failed to reproduce 'tokenize': failed to run: python -m stages.tokenize --params p.yaml, exited with"


@pytest.mark.parametrize(
    ("end", "failure"),
    [
        (f"> python -m stages.tokenize\ntokenize: seed is -1; do this\n{RUN} 1\n", "tokenize: seed is -1; do this"),
        (f"  File x\nValueError: a library failed\n{RUN} 1\n", "ValueError: a library failed"),
        (f"> python -m stages.tokenize\ntokenize:  20%|██  | 1/5\r{RUN} -9\n", "exited with -9"),
        (f"> python -m stages.tokenize\n{RUN} 1\n", "exited with 1"),
        ("ERROR: failed to reproduce 'tokenize': missing data 'source': x\n", "missing data 'source': x"),
    ],
)
def test_a_failed_stage_gives_its_own_sentence(end, failure):
    assert failure_in(f"Running stage 'tokenize':\n{end}") == ("tokenize", failure)


def example(*findings: Finding, machines: tuple[str, str] | None = None) -> Verification:
    return Verification("HEAD", "0123456789abcdef", machines, (), findings, 3, ("A remark.",))


def test_the_table_marks_faults_and_names_the_first():
    fine, bad = Finding("a", "x", "identical"), Finding("longer", "y/z", "different", "1 of 2 bytes differ", 0.5)
    assert verification_text(example(fine, bad)) == (
        "    stage    file    result     difference\n"
        "    a        x       identical\n"
        "✗   longer   y/z     different  1 of 2 bytes differ\n"
        "\n"
        "A remark.\n"
        "Hashed 3 copies of outputs in the local cache and workspace.\n"
        "HEAD (0123456): 1 identical, 1 different.\n"
        "Not verified, because of longer. Results differ from stage longer on."
    )


def test_json_has_everything_for_a_program():
    result = json.loads(
        verification_json(example(Finding("a", "x", "different", "far", 0.5), machines=("one", "other")))
    )
    assert result["verified"] is False
    assert result["findings"] == [{"stage": "a", "path": "x", "verdict": "different", "detail": "far", "largest": 0.5}]
    assert result["machines"] == ["one", "other"]
    assert "losses" in result["tolerances"]


def test_json_says_null_where_a_number_became_none():
    result = json.loads(
        verification_json(example(Finding("a", "x", "different", "far", math.inf))), parse_constant=pytest.fail
    )
    assert result["findings"][0]["largest"] is None
