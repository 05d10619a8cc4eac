from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from scratchlm.compare.records import Family, Unpaired, better, check_records, families, pair_up
from scratchlm.data.labelled_texts import COLLECTION
from scratchlm.judge.overlap import normalise
from scratchlm.judge.scoring import JUDGEMENT_SCHEMA
from scratchlm.run.nested import flattened
from scratchlm.tasks.bootstrap import observed
from scratchlm.tasks.generation import RESPONSE_SCHEMA, response_counts
from scratchlm.tasks.language_model import LOSS_SCHEMA
from scratchlm.tasks.policy_evaluation import GAIN_SCHEMA, reward_metrics
from scratchlm.tasks.preference import PAIR_SCHEMA, PairScores
from scratchlm.tasks.reward import REWARD_SCHEMA, RewardScores
from scratchlm.tasks.scores import PREDICTION_SCHEMA, classification_scores, prediction_rows


class Held:
    """A revision that holds these tables."""

    def __init__(self, name: str, **tables: tuple[list[dict[str, Any]], pa.Schema]) -> None:
        self.name, self.rebuild, self._tables = name, "`dvc repro`", tables

    def table(self, path: str) -> pa.Table:
        rows, schema = self._tables[path.rpartition("/")[2].removesuffix(".parquet").replace("-", "_")]
        return pa.Table.from_pylist(rows, schema=schema)


def family(metric: str) -> Family:
    (found,) = families([metric])
    return found


def values(metric: str, revision: Any, tracked: Mapping[str, float] | None = None) -> dict[str, float]:
    """What a revision's records give for each metric of a family."""
    it = family(metric)
    statistics = it.statistics(it.read(revision).columns, tracked or {})
    return {name: observed(statistic) for name, statistic in statistics.items()}


def predictions(*probabilities: float, **changes: Any) -> tuple[list[dict[str, Any]], pa.Schema]:
    """Messages 0, 1, …, every other one spam. probabilities: of spam."""
    messages = [{"id": f"sms-{i}", "label": i % 2, "text": f"text {i}"} for i in range(len(probabilities))]
    spam = np.array(probabilities)
    rows = prediction_rows(messages, np.stack([1 - spam, spam], axis=1), COLLECTION)
    rows[0] |= changes
    return rows, PREDICTION_SCHEMA


def of_classes(labels: Sequence[int], probabilities: np.ndarray, classes: Sequence[str]) -> Any:
    """A revision with predictions for messages 0, 1, …"""
    messages = [{"id": str(i), "label": label, "text": f"text {i}"} for i, label in enumerate(labels)]
    return Held("main", finetune_spam=(prediction_rows(messages, probabilities, classes), PREDICTION_SCHEMA))


def losses(*sums: float) -> tuple[list[dict[str, Any]], pa.Schema]:
    return [{"id": f"val-{i}", "loss_nats": s, "scored_tokens": 2} for i, s in enumerate(sums)], LOSS_SCHEMA


def responses(*texts: str, **changes: Any) -> tuple[list[dict[str, Any]], pa.Schema]:
    """Answers to tasks whose right answer is red."""
    rows = [
        {"id": f"task-{i}", "model": "instruct", "instruction": f"do {i}", "input": "", "output": "red",
         "response": text, "finished": len(text) < 5}
        for i, text in enumerate(texts)
    ]  # fmt: skip
    rows[-1] |= changes
    return rows, RESPONSE_SCHEMA


def judgements(*scores: float | None) -> tuple[list[dict[str, Any]], pa.Schema]:
    rows = [
        {"id": f"task-{i}", "model": model, "response": "", "score": s, "reason": "", "raw_reply": ""}
        for model in ("instruct", "control_reference")
        for i, s in enumerate(scores)
    ]
    return rows, JUDGEMENT_SCHEMA


METRICS = [
    "judge.instruct.mean_score",
    "judge.control_empty.mean_score",
    "judge.repeat_1.mean_score",
    "judge.trust.mean_score",
    "generate/instruct.finished",
    "generate/base.finished",
    "finetune_instruct.after.test_loss",
    "finetune_instruct.before.test_loss",
    "ablate_pretrain/rope.train.loss",
    "ablate_pretrain/rope.val.loss",
    "ablate_pretrain/rope.kv_cache_bytes_per_token",
    "ablate_spam/first.test.auroc",
    "ablate_spam/first.val.auroc",
    "finetune_preference/dpo.test.accuracy",
    "finetune_preference/dpo.val.accuracy",
    "finetune_preference/dpo.test.kl_per_token",
    "reward_model/bradley_terry.test.accuracy",
    "reward_model/bradley_terry.test.calibration_error",
    "reward_model/bradley_terry.train.accuracy",
    "reinforce/grpo.test.reward",
    "reinforce/grpo.test.gain_low",
    "reinforce/grpo.train.gain",
    "finetune_spam.test.loss",
    "load_gpt2/nano.val.loss",
    "load_gpt2/124M.val.loss",
    "pretrain.val.loss",
    "pretrain.train.loss",
    "tokenize.vocab_size",
]


def test_each_family_is_found_once_in_the_order_of_the_pipeline() -> None:
    assert [(found.prefix, found.paths, found.examples) for found in families(METRICS)] == [
        ("pretrain.val", ("data/losses/pretrain.parquet",), "windows"),
        ("ablate_pretrain/rope.val", ("data/losses/ablate_pretrain/rope.parquet",), "windows"),
        ("load_gpt2/124M.val", ("data/losses/gpt2-124M.parquet",), "windows"),
        ("load_gpt2/nano.val", ("data/losses/gpt2-nano.parquet",), "windows"),
        ("finetune_spam.test", ("data/predictions/finetune_spam.parquet",), "messages"),
        ("ablate_spam/first.test", ("data/predictions/ablate_spam/first.parquet",), "messages"),
        ("finetune_instruct.after", ("data/losses/finetune_instruct.parquet",), "responses"),
        ("finetune_preference/dpo.test", ("data/losses/finetune_preference/dpo.parquet",), "pairs"),
        ("reward_model/bradley_terry.test", ("data/losses/reward_model/bradley_terry.parquet",), "pairs"),
        ("reinforce/grpo.test", ("data/losses/reinforce/grpo.parquet",), "prompts"),
        ("generate/base", ("data/responses/generate/base.parquet",), "responses"),
        ("generate/instruct", ("data/responses/generate/instruct.parquet",), "responses"),
        ("judge.instruct", ("data/responses/generate/instruct.parquet", "data/responses/judge.parquet"), "responses"),
    ]


@pytest.mark.parametrize(
    ("metric", "proportions"),
    [
        ("pretrain.val.loss", set()),
        ("finetune_spam.test.loss", {"accuracy", "precision", "recall", "f1"}),
        ("finetune_instruct.after.test_loss", set()),
        ("generate/instruct.finished", {"finished", "exact_matches"}),
        ("judge.instruct.mean_score", set()),
    ],
)
def test_shares_and_counts_get_the_interval_of_a_proportion(metric: str, proportions: set[str]) -> None:
    held = Held(
        "main", pretrain=losses(1.0), finetune_spam=predictions(0.1, 0.9), finetune_instruct=losses(1.0),
        instruct=responses("a"), judge=judgements(1.0),
    )  # fmt: skip
    it = family(metric)
    found = it.statistics(it.read(held).columns, {"loss": 1.0, "bits_per_byte": 1.0})  # type: ignore[arg-type]
    assert set(found) == {name for name in it.names if "macro" not in name}  # there are two classes
    assert {name for name, statistic in found.items() if statistic.proportion} == proportions


def test_a_judge_that_gave_no_score_leaves_nothing_to_compare() -> None:
    assert families(["judge.instruct.failures", "judge.instruct.responses"]) == []


@pytest.mark.parametrize(
    ("metric", "up_is_better"),
    [("pretrain.val.loss", False), ("pretrain.val.perplexity", False), ("pretrain.val.bits_per_byte", False),
     ("finetune_instruct.after.test_loss", False), ("finetune_spam.test.accuracy", True),
     ("finetune_preference/dpo.test.margin", True), ("finetune_preference/dpo.test.loss", False),
     ("reward_model/a.test.accuracy", True), ("reward_model/a.test.calibration_error", False),
     ("reinforce/grpo.test.reward", True), ("reinforce/grpo.test.gain", True),
     ("generate/instruct.finished", True), ("judge.instruct.mean_score", True)],
)  # fmt: skip
def test_every_metric_of_a_family_has_its_good_direction(metric: str, up_is_better: bool) -> None:
    assert (better(metric, 0.1), better(metric, -0.1)) == (up_is_better, not up_is_better)


# what the records give is what the stage tracked


def test_predictions_give_the_scores_that_the_stage_tracks() -> None:
    source = np.random.default_rng(1)
    spam = np.array([*source.random(60), 0.0, 1.0])
    expected = classification_scores(np.arange(62) % 2, np.stack([1 - spam, spam], axis=1), COLLECTION)
    found = values("finetune_spam.test.loss", Held("main", finetune_spam=predictions(*spam)))
    assert found == pytest.approx({name: expected[name] for name in found})
    assert set(found) == {name for name in family("finetune_spam.test.loss").names if "macro" not in name}


@pytest.mark.parametrize("n_classes", [3, 5])
def test_predictions_of_more_classes_give_the_scores_that_the_stage_tracks(n_classes: int) -> None:
    """One of the classes has no message, and another is never predicted."""
    source, classes = np.random.default_rng(n_classes), ["a.b", "test", "c d", "é", "e"][:n_classes]
    labels, probabilities = source.integers(n_classes - 1, size=80), source.dirichlet(np.ones(n_classes), 80)
    probabilities[:, 0] = 0
    scores = classification_scores(labels, probabilities, classes)
    tracked = flattened({"test": scores})
    (it,) = families(f"finetune_spam.{name}" for name in tracked)
    held = of_classes(labels.tolist(), probabilities, classes)
    found = {name: observed(statistic) for name, statistic in it.statistics(it.read(held).columns, {}).items()}
    expected = {name: tracked[f"test.{name}"] for name in it.names if f"test.{name}" in tracked}
    assert sum(name.startswith("classes.") for name in expected) == 3 * (n_classes - 1)
    known = {name: found[name] for name in expected if np.isfinite(found[name])}
    assert known == pytest.approx({name: expected[name] for name in known})
    assert expected.keys() - known.keys() == {"classes.a.b.precision"}  # 0/0
    check_records(it, it.read(held), expected, held)


def test_a_variant_may_have_a_class_with_the_name_of_a_split() -> None:
    metrics = [f"ablate_spam/first.{split}.classes.test.f1" for split in ("train", "test")]
    (it,) = families([*metrics, "ablate_spam/first.test.macro_f1"])
    assert it.prefix == "ablate_spam/first.test" and it.names[-1] == "classes.test.f1"


def test_predictions_of_an_older_revision_are_paired_with_new_ones() -> None:
    spam = (0.1, 0.9, 0.8)
    rows = [
        {"id": f"sms-{i}", "label": i % 2, "predicted": int(p > 0.5), "probability": p, "text": f"text {i}"}
        for i, p in enumerate(spam)
    ]
    kinds = {"id": pa.string(), "label": pa.int8(), "predicted": pa.int8(), "probability": pa.float64()}
    old = Held("main", finetune_spam=(rows, pa.schema(kinds | {"text": pa.string()})))
    one, other, _ = paired("finetune_spam.test.loss", old, Held("branch", finetune_spam=predictions(*spam)))
    assert {name: column.tolist() for name, column in one.items()} == {
        name: column.tolist() for name, column in other.items()
    }


def test_classes_in_another_order_are_other_metrics() -> None:
    first, second = (of_classes([0, 1], np.eye(2), classes) for classes in (["a", "b"], ["b", "a"]))
    with pytest.raises(Unpaired, match="2 at main, 2 at branch, 0 the same"):
        paired("finetune_spam.test.loss", first, second)


def test_pairs_give_the_scores_that_the_stage_tracks() -> None:
    source = np.random.default_rng(2)
    rewards, losses = source.normal(size=(20, 2)), source.random(20)
    rewards[3] = 0.5  # equal rewards count half
    scores = PairScores(rewards, rewards, losses, losses, np.full(20, 5))
    held = Held("main", dpo=(scores.rows([f"pair-{i}" for i in range(20)]), PAIR_SCHEMA))
    found, expected = values("finetune_preference/dpo.test.loss", held), scores.metrics()
    assert found == pytest.approx({name: expected[name] for name in found})
    assert set(found) == set(family("finetune_preference/dpo.test.loss").names)
    held = Held("main", a=(RewardScores(rewards, losses).rows([f"pair-{i}" for i in range(20)]), REWARD_SCHEMA))
    assert values("reward_model/a.test.loss", held) == pytest.approx({name: expected[name] for name in found})


def test_rewards_give_the_means_that_the_stage_tracks() -> None:
    rows = [
        {"id": f"pair-{i}", "response": "", "finished": i > 2, "reward_before": i / 7, "reward": i * i / 40}
        for i in range(9)
    ]
    found, expected = values("reinforce/a.test.gain", Held("main", a=(rows, GAIN_SCHEMA))), reward_metrics(rows, 1)
    assert found == pytest.approx({name: expected[name] for name in found})
    assert set(found) == set(family("reinforce/a.test.gain").names)
    assert expected["finished_share"] == pytest.approx(6 / 9)


def test_a_certain_mistake_costs_what_scikit_learn_says() -> None:
    rows, schema = predictions(1.0, 1.0)  # the first is ham
    expected = classification_scores(np.array([0, 1]), np.array([[0.0, 1.0]] * 2), COLLECTION)["loss"]
    found = values("finetune_spam.test.loss", Held("main", finetune_spam=(rows, schema)))
    assert found["loss"] == pytest.approx(expected)


def test_losses_give_loss_perplexity_and_bits_per_byte() -> None:
    held = Held("main", gpt2_nano=losses(2.0, 6.0))
    found = values("load_gpt2/nano.val.loss", held, {"loss": 4.0, "bits_per_byte": 1.0})
    assert found == pytest.approx({"loss": 2.0, "perplexity": np.exp(2), "bits_per_byte": 0.5})
    assert values("finetune_instruct.after.test_loss", Held("main", finetune_instruct=losses(2.0, 6.0))) == {
        "test_loss": 2.0
    }


def test_responses_give_the_counts_that_the_stage_tracks() -> None:
    rows, schema = responses("Red.", "blue", "very red")
    counted = response_counts(rows, normalise)
    assert (counted["finished"], counted["exact_matches"]) == (2, 1)
    found = values("generate/instruct.finished", Held("main", instruct=(rows, schema)))
    assert found == {"finished": 2, "exact_matches": 1}


def test_judgements_give_the_mean_of_the_models_own_scores() -> None:
    held = Held("main", instruct=responses("a", "b"), judge=judgements(100.0, 25.0))
    assert values("judge.instruct.mean_score", held) == {"mean_score": 62.5}


# pairing


def paired(metric: str, first: Any, second: Any) -> tuple[Any, Any, int]:
    it = family(metric)
    return pair_up(it, it.read(first), it.read(second), ("main", "branch"))


def test_examples_are_paired_by_id_whatever_their_order() -> None:
    rows, schema = predictions(0.1, 0.9, 0.2)
    shuffled = Held("branch", finetune_spam=([rows[2], rows[0], rows[1]], schema))
    one, other, left_out = paired("finetune_spam.test.loss", Held("main", finetune_spam=(rows, schema)), shuffled)
    assert left_out == 0
    assert one["of the second class"].tolist() == other["of the second class"].tolist() == [0.1, 0.9, 0.2]


@pytest.mark.parametrize("change", [{"id": "sms-9"}, {"label": "spam"}, {"text": "other"}])
def test_messages_that_are_not_the_same_are_refused_with_a_sentence(change: dict[str, Any]) -> None:
    first = Held("main", finetune_spam=predictions(0.1, 0.9, 0.2))
    second = Held("branch", finetune_spam=predictions(0.1, 0.9, 0.2, **change))
    with pytest.raises(Unpaired) as error:
        paired("finetune_spam.test.loss", first, second)
    assert str(error.value) == (
        "finetune_spam.test is measured on different messages: 3 at main, 3 at branch, 2 the same; to compare, build "
        "both with the same sources.messages, tokenize.messages and seed"
    )


def test_a_part_of_the_test_set_is_another_test_set() -> None:
    first = Held("main", finetune_spam=predictions(0.1, 0.9, 0.2))
    with pytest.raises(Unpaired, match="3 at main, 2 at branch, 2 the same"):
        paired("finetune_spam.test.loss", first, Held("branch", finetune_spam=predictions(0.1, 0.9)))


@pytest.mark.parametrize("metric", ["generate/instruct.finished", "judge.instruct.mean_score"])
@pytest.mark.parametrize("change", [{"instruction": "other"}, {"input": "other"}, {"output": "blue"}])
def test_tasks_that_are_not_the_same_are_refused(metric: str, change: dict[str, str]) -> None:
    first = Held("main", instruct=responses("a", "b"), judge=judgements(1.0, 2.0))
    second = Held("branch", instruct=responses("a", "b", **change), judge=judgements(1.0, 2.0))
    with pytest.raises(
        Unpaired, match="is measured on different responses: 2 at main, 2 at branch, 1 the same; .* and generate.split$"
    ):
        paired(metric, first, second)


def test_windows_with_another_id_are_refused() -> None:
    rows, schema = losses(2.0, 6.0)
    other = [row | {"id": f"{row['id']}-1a2b3c4d"} for row in rows]
    with pytest.raises(
        Unpaired, match="on different windows: .* 0 the same; .* tokenize.corpus and evaluation.context_"
    ):
        paired("pretrain.val.loss", Held("main", pretrain=(rows, schema)), Held("branch", pretrain=(other, schema)))


def test_responses_without_a_score_on_either_side_are_left_out_of_both() -> None:
    first = Held("main", instruct=responses(*"abcd"), judge=judgements(10.0, None, 30.0, 40.0))
    second = Held("branch", instruct=responses(*"abcd"), judge=judgements(11.0, 21.0, None, 41.0))
    one, other, left_out = paired("judge.instruct.mean_score", first, second)
    assert (one["score"].tolist(), other["score"].tolist(), left_out) == ([10.0, 40.0], [11.0, 41.0], 2)


def test_no_score_in_common_is_refused() -> None:
    first = Held("main", instruct=responses(*"ab"), judge=judgements(10.0, None))
    second = Held("branch", instruct=responses(*"ab"), judge=judgements(None, 21.0))
    with pytest.raises(Unpaired, match="^no example of judge.instruct has a value at both main and branch; "):
        paired("judge.instruct.mean_score", first, second)


# records and metrics of one build


def test_records_that_do_not_give_the_tracked_metrics_are_refused() -> None:
    it, held = family("finetune_spam.test.loss"), Held("main", finetune_spam=predictions(0.1, 0.9, 0.8, 0.7))
    records = it.read(held)
    check_records(it, records, {"accuracy": 0.75, "precision": 0.666667}, held)
    with pytest.raises(Unpaired) as error:
        check_records(it, records, {"accuracy": 0.8}, held)
    assert str(error.value) == (
        "the records of finetune_spam.test at main give accuracy 0.75, but its metrics file has 0.8: they were not "
        "built together; rebuild: `dvc repro`"
    )


def test_a_metric_that_is_zero_by_convention_agrees_with_its_records() -> None:
    it, held = family("finetune_spam.test.loss"), Held("main", finetune_spam=predictions(0.1, 0.1))
    check_records(it, it.read(held), {"precision": 0.0}, held)  # nothing is called spam: 0/0


def test_a_judges_mean_is_over_its_own_scores() -> None:
    it = family("judge.instruct.mean_score")
    held = Held("main", instruct=responses(*"abc"), judge=judgements(10.0, None, 30.0))
    check_records(it, it.read(held), {"mean_score": 20.0}, held)
