"""Branches of a clone in which the pipeline has run, compared as a user does it.

It tests what is committed: commit before you run it.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from scratchlm.compare.compare import BETTER, NO_EVIDENCE, NOT_COMPARED, SAME, Comparison, Row, compare_revisions
from scratchlm.compare.variants import compare_variants
from scratchlm.run.errors import UserError
from scratchlm.run.files import read_json, write_json
from tests.clones import commit, run, set_parameter
from tests.commands import scratchlm
from tests.unit.judge.ollama_stand_in import UNTRIED, ollama_stand_in

SPAM = [f"finetune_spam.test.{name}" for name in ("accuracy", "precision", "recall", "f1", "auroc", "loss")]
BASELINE = [name.replace("finetune_spam", "baseline_spam") for name in SPAM]
CORPUS = [
    f"{run}.val.{name}" for run in ("pretrain", "load_gpt2/nano") for name in ("loss", "perplexity", "bits_per_byte")
]
VARIANTS = {"instruct": "finetune_instruct", "dpo": "finetune_preference/dpo"}
ANSWERS = [f"generate/{name}.{metric}" for name in ("dpo", "instruct") for metric in ("finished", "exact_matches")]
ANSWERS += ["judge.dpo.mean_score", "judge.instruct.mean_score"]
LOSS = "finetune_instruct.after.test_loss"
PAIRS = [f"finetune_preference/dpo.test.{name}" for name in ("loss", "accuracy", "margin")]
PAIRS += [name.replace("finetune_preference/dpo", "reward_model/bradley_terry") for name in PAIRS]
PAIRS += ["reinforce/grpo.test.reward", "reinforce/grpo.test.gain"]


def branch(project: Path, name: str, parameter: str, value: object, *stages: str) -> None:
    """A branch off main with one parameter changed and these stages, and no other, rebuilt."""
    run(project, "git", "switch", "-qc", name, "main")
    run(project, "dvc", "checkout", "-q", "--allow-missing")
    set_parameter(project, parameter, value)
    run(project, "dvc", "repro", "--single-item", *stages)
    commit(project, name)


def edited_branch(project: Path, name: str, file: str, *keys: str, value: object) -> None:
    """A branch off main with a metric changed by hand."""
    run(project, "git", "switch", "-qc", name, "main")
    metrics = inner = read_json(project / "metrics" / file)
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    write_json(project / "metrics" / file, metrics)
    commit(project, name)


@pytest.fixture(scope="module")
def project(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built clone, with sampled answers of two variants."""
    project = shutil.copytree(built, tmp_path_factory.mktemp("clones") / "project", symlinks=True)
    run(project, "git", "switch", "-qC", "main")
    set_parameter(project, "generate.sampling.temperature", 1.0)
    set_parameter(project, "variants", VARIANTS)
    run(project, "dvc", "repro", "judge")
    commit(project, "Sample the answers of two variants")
    branch(project, "more-training", "finetune_spam.epochs", 1, "finetune_spam", "baseline_spam")
    # `seed` seeds every stage: only what draws the answers is rebuilt with the other one
    branch(project, "other-draws", "seed", 7, "generate@instruct", "generate@dpo", "judge")
    spam = ("tokenize", "finetune_spam", "baseline_spam")
    branch(project, "other-messages", "tokenize.messages.train_fraction", 0.6, *spam)
    edited_branch(project, "other-judge", "judge.json", "judge", "version", value=1)
    edited_branch(project, "other-metrics", "finetune_spam.json", "test", "accuracy", value=0.99)
    run(project, "git", "switch", "-q", "main")
    run(project, "dvc", "checkout", "-q", "--allow-missing")
    return project


@pytest.fixture
def there(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    return project


def compared(*names: str) -> Comparison:
    (found,) = compare_revisions(names)
    return found


def rows(found: Comparison) -> dict[str, Row]:
    return {row.metric: row for row in found.rows}


def verdicts(found: Comparison) -> dict[str, str]:
    return {row.metric: row.verdict for row in found.rows if row.verdict}


def test_more_training_is_better_and_leaves_the_rest_the_same(there: Path) -> None:
    found = compared("main", "more-training")
    assert list(verdicts(found)) == [*CORPUS, *SPAM, *BASELINE, LOSS, *PAIRS, *ANSWERS]
    assert [row.metric for row in found.rows[: len(verdicts(found))]] == list(verdicts(found))
    assert {metric for metric, verdict in verdicts(found).items() if verdict == SAME} == {
        *CORPUS, *BASELINE, LOSS, *PAIRS, *ANSWERS,
    }  # fmt: skip
    accuracy, loss = (rows(found)[f"finetune_spam.test.{name}"] for name in ("accuracy", "loss"))
    assert (accuracy.verdict, loss.verdict) == (BETTER, BETTER)
    assert accuracy.interval and accuracy.interval[0] > 0 and accuracy.examples == 150 and accuracy.needed is None
    assert loss.interval and loss.interval[1] < 0
    for row in (accuracy, loss):
        assert row.first is not None and row.second is not None
        assert row.difference == pytest.approx(row.second - row.first, rel=1e-4)
    assert found.warnings == []


def test_what_differs_is_the_one_parameter_that_was_changed(there: Path) -> None:
    changes = compared("main", "more-training").changes
    assert [tuple(change)[:3] for change in changes.parameters] == [("finetune_spam.epochs", 0.2, 1)]
    assert (changes.packages, changes.data, changes.code) == ([], [], [])


def test_metrics_without_records_have_a_difference_and_no_verdict(there: Path) -> None:
    found = rows(compared("main", "more-training"))
    train = found["finetune_spam.train.loss"]
    assert train.first is not None and train.second is not None
    assert train.difference == train.second - train.first < 0
    assert (train.verdict, train.interval) == ("", None)
    assert found["tokenize.vocab_size"].difference == 0


def test_another_seed_of_sampling_is_no_evidence_of_a_difference(there: Path) -> None:
    found = compared("main", "other-draws")
    assert {verdicts(found)[metric] for metric in ANSWERS} <= {NO_EVIDENCE, SAME}
    score = rows(found)["judge.instruct.mean_score"]
    assert score.verdict == NO_EVIDENCE
    assert score.interval and score.interval[0] < 0 < score.interval[1]
    assert score.examples == 110 and score.needed is None  # less than ten responses have another score
    assert {verdicts(found)[metric] for metric in (*CORPUS, *SPAM, LOSS, *PAIRS)} == {SAME}
    assert [tuple(change)[:3] for change in found.changes.parameters] == [("seed", 123, 7)]


def test_a_revision_whose_stages_are_behind_its_parameters_says_so(there: Path) -> None:
    (warning,) = compared("main", "other-draws").warnings
    assert warning == (
        "other-draws is not built from what it holds: parameters, packages, code or metrics of tokenize, pretrain, "
        "finetune_spam, finetune_instruct, finetune_preference@dpo, reward_model@bradley_terry, reinforce@grpo have "
        "changed since its last `dvc repro`; rebuild: `scratchlm build other-draws`"
    )


def test_another_test_set_is_refused_with_a_sentence_and_the_values_shown(there: Path) -> None:
    found = compared("main", "other-messages")
    assert {metric for metric, verdict in verdicts(found).items() if verdict == NOT_COMPARED} == {*SPAM, *BASELINE}
    row = rows(found)[SPAM[0]]
    assert row.first is not None and row.second is not None
    assert (row.difference, row.interval) == (None, None)
    assert row.note.startswith(
        "finetune_spam.test is measured on different messages: 150 at main, 225 at other-messages, "
    )
    assert row.note.endswith("build both with the same sources.messages, tokenize.messages and seed")


def test_another_judge_is_refused_with_a_sentence(there: Path) -> None:
    found = compared("main", "other-judge")
    row = rows(found)["judge.instruct.mean_score"]
    assert (row.verdict, row.first, row.difference) == (NOT_COMPARED, row.second, None)
    assert row.note == (
        "judge.mean_score comes from different judges (version 2 and 1), whose scores are on different scales; "
        "to compare, build both with the same judge section and the same server"
    )
    assert set(verdicts(found).values()) == {SAME, NOT_COMPARED}


def test_metrics_that_their_records_do_not_give_are_refused(there: Path) -> None:
    row = rows(compared("main", "other-metrics"))["finetune_spam.test.accuracy"]
    assert row.verdict == NOT_COMPARED
    assert "at other-metrics give accuracy" in row.note and "but its metrics file has 0.99" in row.note


def test_a_single_revision_is_compared_with_the_workspace(there: Path) -> None:
    (found,) = compare_revisions(["more-training"])
    assert (found.first.name, found.second.name) == ("more-training", "workspace")
    assert rows(found)["finetune_spam.test.loss"].verdict == "worse"
    text = (there / "params.yaml").read_text()
    set_parameter(there, "finetune_spam.epochs", 2)
    (found,) = compare_revisions(["main"])
    (there / "params.yaml").write_text(text)
    assert set(verdicts(found).values()) == {SAME}
    assert found.changes.parameters == []
    (warning,) = found.warnings
    assert warning.startswith("workspace is not built from what it holds: ") and " finetune_spam have" in warning


def test_code_that_was_edited_and_not_built_is_reported_with_its_stages(there: Path) -> None:
    script = there / "stages" / "finetune_spam.py"
    text = script.read_text()
    script.write_text(text + "# edited\n")
    (found,) = compare_revisions(["main"])
    script.write_text(text)
    assert [warning.partition(" have changed")[0] for warning in found.warnings] == [
        "workspace is not built from what it holds: parameters, packages, code or metrics of finetune_spam"
    ]
    assert found.changes.code == []  # as it was built, and nothing was built yet


def test_three_revisions_at_once_leave_the_workspace_untouched(project: Path, tmp_path: Path) -> None:
    def state() -> dict[str, int]:
        files = [path for path in project.rglob("*") if path.is_file() and not {".git", "tmp"} & set(path.parts)]
        return {str(path): path.stat().st_mtime_ns for path in files if "__pycache__" not in path.parts}

    before = state(), run(project, "git", "status", "--porcelain").stdout, run(project, "git", "branch").stdout
    done = scratchlm(project, "compare", "main", "more-training", "other-draws", "--plot", str(tmp_path / "plot.svg"))
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("more-training", "other-draws"):
        sha = run(project, "git", "rev-parse", "--short=7", name).stdout.strip()
        assert f"{name} ({sha}) compared with main (" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120
    assert "finetune_spam.test.loss" in (tmp_path / "plot.svg").read_text()
    assert (
        state(),
        run(project, "git", "status", "--porcelain").stdout,
        run(project, "git", "branch").stdout,
    ) == before


def test_json_from_a_subfolder_has_every_metric_unrounded_and_a_metric_that_got_worse_gives_status_3(
    project: Path,
) -> None:
    words = ("--format", "json", "--fail-if", "worse")
    back = scratchlm(project / "metrics", "compare", "more-training", "main", *words)
    assert back.returncode == 3 and json.loads(back.stdout)
    assert re.search(r"^main \(.*\): finetune_spam.test.accuracy is worse, .* \(--fail-if 'worse'\)\n", back.stderr)
    done = scratchlm(project / "metrics", "compare", "main", "more-training", *words)
    assert (done.returncode, done.stderr) == (0, "")
    (found,) = json.loads(done.stdout)
    loss = {row["metric"]: row for row in found["metrics"]}["finetune_spam.test.loss"]
    assert loss["difference"] != round(loss["difference"], 8)
    assert loss["interval"][0] < loss["difference"] < loss["interval"][1] < 0


def test_the_variants_of_a_revision_are_compared_paired_by_task(there: Path) -> None:
    (found,) = compare_variants("main", "instruct")
    (reverse,) = compare_variants("workspace", "dpo")
    assert str(found.second).startswith("dpo of main (")
    assert found.warnings == []
    metrics = {name: read_json(there / "metrics" / "generate" / f"{name}.json") for name in VARIANTS}
    scores = read_json(there / "metrics" / "judge.json")
    assert [row.metric for row in found.rows] == ["finished", "exact_matches", "mean_score"]
    for row, other in zip(found.rows, reverse.rows, strict=True):
        sources = scores if row.metric == "mean_score" else metrics
        assert (row.first, row.second) == tuple(sources[name][row.metric] for name in VARIANTS)
        assert row.examples == 110 and row.difference == pytest.approx(row.second - row.first, abs=1e-3)
        assert other.difference == pytest.approx(-row.difference)
        assert row.verdict in (BETTER, NO_EVIDENCE, SAME, "worse")


def test_a_language_model_compares_the_answers_of_two_revisions(there: Path) -> None:
    """It prefers the longer one. The judge is that of the workspace, and the revisions need none."""

    def prefers_the_longer(request: dict[str, Any]) -> str:
        first, second = re.findall(r"<(?:first|second)>\n(.*?)\n</", request["messages"][1]["content"], re.DOTALL)
        gap = len(first) - len(second)
        return json.dumps({"reason": "x", "better": "first" if gap > 0 else "second" if gap else "neither"})

    parameters = there / "params.yaml"
    committed = parameters.read_text()
    asked = {"prompt": "anchored", "timeout_seconds": 20.0, "retries": 0, "seed": 1, "max_new_tokens": 64}
    with ollama_stand_in(prefers_the_longer) as server:
        judge = {
            "backend": "ollama",
            "model": "llama3",
            **UNTRIED,
            **asked,
            "host": server.host,
            "context_tokens": 2048,
        }
        try:
            set_parameter(there, "judge", judge)
            done = scratchlm(there, "compare", "--pairwise", "main", "other-draws", "--format", "json")
        finally:
            parameters.write_text(committed)
    (found,) = json.loads(done.stdout)
    records, metrics = found["records"], found["metrics"]
    assert metrics["responses"] == len(records) == 110
    longer = [len(row["response"]) - len(row["baseline_response"]) for row in records]
    assert [row["win"] for row in records] == [0.5 + 0.5 * ((gap > 0) - (gap < 0)) for gap in longer]
    assert metrics["inconsistent"] == metrics["failures"] == 0
    assert len(server.requests) <= 2 * sum(row["response"] != row["baseline_response"] for row in records)
    assert run(there, "git", "status", "--porcelain").stdout == ""


def test_variants_of_other_judgements_than_the_tracked_ones_are_refused(there: Path) -> None:
    path = there / "metrics" / "judge.json"
    text = path.read_text()
    metrics = read_json(path)
    metrics["dpo"]["mean_score"] += 1
    write_json(path, metrics)
    (found,) = compare_variants("workspace", "instruct")
    path.write_text(text)
    assert rows(found)["mean_score"].verdict == NOT_COMPARED
    assert rows(found)["mean_score"].note.startswith("the records of judge.dpo at workspace give mean_score ")
    (warning,) = found.warnings
    assert warning.startswith("workspace is not built from what it holds: ")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "no revision; name one, or add --variants"),
        (["main", "--against", "dpo"], "--against names a variant; add --variants"),
        (["--variants", "main", "other-draws"], "--variants compares those of one revision, not of 2; name one, or no"),
        (["--variants", "--against", "ppo"], "workspace has no variant 'ppo'; choose one of dpo, instruct"),
        (["main", "--fail-if", "wors"], "--fail-if is 'wors', but must be `worse`, `METRIC worse`, or a metric with "),
        (["--variants", "nowhere"], "'nowhere' is not a revision of this repository; "),
    ],
)
def test_words_that_fit_no_comparison_are_one_sentence(project: Path, words: list[str], sentence: str) -> None:
    done = scratchlm(project, "compare", *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"scratchlm: {sentence}")
    assert done.stderr.count("\n") == 1


def test_an_unknown_revision_is_one_sentence(project: Path) -> None:
    done = scratchlm(project, "compare", "main", "nowhere")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("scratchlm: 'nowhere' is not a revision of this repository; ")
    assert done.stderr.count("\n") == 1


def test_a_revision_without_metrics_is_one_sentence(project: Path, there: Path) -> None:
    run(project, "git", "switch", "-qc", "nothing-built")
    run(project, "git", "rm", "-qr", "--cached", "metrics")
    run(project, "git", "-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "-qm", "Nothing")
    run(project, "git", "switch", "-qf", "main")
    with pytest.raises(UserError, match="^nothing-built has no metrics; build it: `scratchlm build nothing-built`$"):
        compare_revisions(["main", "nothing-built"])


def test_without_artifacts_the_values_stand_beside_one_sentence_that_says_how_to_get_them(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, "git", "clone", "-q", str(project), "clone")
    monkeypatch.chdir(tmp_path / "clone")
    found = compared("main", "origin/more-training")
    assert {metric for metric, verdict in verdicts(found).items() if verdict == NOT_COMPARED} == set(SPAM)
    assert {verdicts(found)[metric] for metric in (*CORPUS, *BASELINE, LOSS, *PAIRS, *ANSWERS)} == {
        SAME
    }  # dvc.lock has equal hashes
    row = rows(found)["finetune_spam.test.loss"]
    assert row.difference is not None and row.difference < 0
    assert row.note == (
        "main lacks data/predictions/finetune_spam.parquet: not in the cache, and no remote is configured; "
        "run `dvc push --all-commits` where it was built and `dvc pull` here, "
        "or rebuild: `scratchlm build main`"
    )
    drawn = compared("origin/other-draws", "main")
    notes = {row.note for row in drawn.rows if row.note}
    assert len(notes) == 1
    assert "origin/other-draws lacks data/responses/generate/dpo.parquet, " in notes.pop()
