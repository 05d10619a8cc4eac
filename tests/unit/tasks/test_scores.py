import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from scratchlm.run.errors import UserError
from scratchlm.run.files import read_table, write_table
from scratchlm.tasks.scores import (
    PREDICTION_SCHEMA,
    accuracy_difference,
    classification_scores,
    confusion_rows,
    prediction_rows,
)

CLASSES = ("ham", "spam")


def message(number: int, label: int) -> dict[str, Any]:
    return {"id": f"sms-{number:05d}", "label": label, "text": f"text {number}"}


def scores_of(labels: np.ndarray, spam: np.ndarray) -> dict[str, Any]:
    """The scores of ham and spam from the probability of spam."""
    return classification_scores(labels, np.stack([1 - spam, spam], axis=1), CLASSES)


def test_scores_of_six_messages_by_hand() -> None:
    labels = np.array([1, 1, 1, 0, 0, 0])
    probabilities = np.array([0.9, 0.8, 0.3, 0.6, 0.2, 0.1])
    scores = scores_of(labels, probabilities)
    assert scores["confusion"] == {"ham_as_ham": 2, "ham_as_spam": 1, "spam_as_ham": 1, "spam_as_spam": 2}
    assert scores["accuracy"] == scores["precision"] == scores["recall"] == pytest.approx(4 / 6)
    assert scores["f1"] == pytest.approx(4 / 6)
    assert scores["auroc"] == pytest.approx(8 / 9)  # of 9 pairs of spam and ham, only 0.3 < 0.6 is the wrong way
    assert scores["loss"] == pytest.approx(-sum(map(math.log, [0.9, 0.8, 0.3, 0.4, 0.8, 0.9])) / 6)
    # Wilson: (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    assert (scores["accuracy_low"], scores["accuracy_high"]) == pytest.approx((0.29999, 0.90323), abs=1e-4)


def test_precision_and_recall_are_not_each_other() -> None:
    scores = scores_of(np.array([1, 1, 1, 1, 0]), np.array([0.9, 0.1, 0.1, 0.1, 0.1]))
    assert (scores["precision"], scores["recall"], scores["f1"]) == pytest.approx((1.0, 0.25, 0.4))


def test_one_half_is_not_yet_spam() -> None:
    assert scores_of(np.array([1, 0]), np.array([0.5, 0.5]))["confusion"]["ham_as_ham"] == 1


@pytest.mark.parametrize("label", [0, 1])
def test_where_only_one_class_occurs_there_is_no_auroc_and_the_rest_is_defined(label: int) -> None:
    right = 0.9 if label else 0.1
    scores = scores_of(np.array([label] * 4), np.array([right] * 4))
    assert "auroc" not in scores
    assert scores["accuracy"] == scores["accuracy_high"] == 1
    assert scores["precision"] == scores["recall"] == scores["f1"] == float(label)
    assert scores["loss"] == pytest.approx(-math.log(0.9))


def test_probabilities_that_are_no_numbers_are_one_sentence() -> None:
    with pytest.raises(UserError, match="^the classifier's probabilities are no longer numbers; lower learning_rate"):
        scores_of(np.array([1, 0]), np.array([0.2, math.nan]))


def test_where_nothing_is_called_spam_precision_is_0() -> None:
    scores = scores_of(np.array([1, 0]), np.array([0.2, 0.1]))
    assert (scores["precision"], scores["recall"], scores["f1"]) == (0.0, 0.0, 0.0)


def test_a_sure_mistake_costs_much_and_not_infinitely_much() -> None:
    assert 10 < scores_of(np.array([1, 0]), np.array([0.0, 0.1]))["loss"] < 100


@given(st.lists(st.tuples(st.booleans(), st.floats(0.01, 0.99)), min_size=1, max_size=40))
def test_scores_hold_together(pairs: list[tuple[bool, float]]) -> None:
    labels = np.array([int(label) for label, _ in pairs])
    probabilities = np.array([probability for _, probability in pairs])
    scores = scores_of(labels, probabilities)
    counts = scores["confusion"]
    assert sum(counts.values()) == len(pairs)
    assert counts["spam_as_ham"] + counts["spam_as_spam"] == labels.sum()
    assert scores["accuracy"] == pytest.approx((counts["ham_as_ham"] + counts["spam_as_spam"]) / len(pairs))
    assert (
        scores["accuracy_low"] <= scores["accuracy"] + 1e-12 and scores["accuracy"] <= scores["accuracy_high"] + 1e-12
    )
    if ("auroc" in scores) and len(set(probabilities.tolist())) == len(pairs):
        spam, ham = probabilities[labels == 1], probabilities[labels == 0]
        assert scores["auroc"] == pytest.approx((spam[:, None] > ham).mean())  # Mann and Whitney 1947
    expected = np.where(labels == 1, probabilities, 1 - probabilities)
    assert scores["loss"] == pytest.approx(-np.log(expected).mean(), rel=1e-9)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.5, 0.7, 1.0]) | st.floats(0, 1)), min_size=1))
def test_scores_are_scikit_learns(pairs: list[tuple[bool, float]]) -> None:
    labels = np.array([label for label, _ in pairs], dtype=np.int8)
    probabilities = np.array([probability for _, probability in pairs])
    predicted = probabilities > 0.5
    expected = {
        "accuracy": metrics.accuracy_score(labels, predicted),
        "precision": metrics.precision_score(labels, predicted, zero_division=0.0),
        "recall": metrics.recall_score(labels, predicted, zero_division=0.0),
        "f1": metrics.f1_score(labels, predicted, zero_division=0.0),
        "loss": metrics.log_loss(labels, probabilities, labels=[0, 1]),
    }
    if len(set(labels.tolist())) == 2:
        expected["auroc"] = metrics.roc_auc_score(labels, probabilities)
    scores = scores_of(labels, probabilities)
    others = {"accuracy_low", "accuracy_high", "confusion"}
    assert {name: value for name, value in scores.items() if name not in others} == pytest.approx(expected, rel=1e-12)
    counted = metrics.confusion_matrix(labels, predicted, labels=[0, 1]).ravel().tolist()
    assert list(scores["confusion"].values()) == counted


def test_the_order_of_the_messages_changes_no_bit() -> None:
    source = np.random.default_rng(8)
    labels, probabilities = source.integers(2, size=1000), source.random(1000)
    scores = scores_of(labels, probabilities)
    for _ in range(5):
        order = source.permutation(1000)
        assert scores_of(labels[order], probabilities[order]) == scores


def test_a_prediction_is_kept_per_message_and_named_for_the_confusion_plot(tmp_path: Path) -> None:
    rows = prediction_rows([message(0, 0), message(7, 1)], np.array([[0.25, 0.75], [0.5, 0.5]]), CLASSES)
    one, other = {"ham": 0.25, "spam": 0.75}, {"ham": 0.5, "spam": 0.5}
    assert rows == [
        {"id": "sms-00000", "label": "ham", "text": "text 0", "probabilities": one, "predicted": "spam"},
        {"id": "sms-00007", "label": "spam", "text": "text 7", "probabilities": other, "predicted": "ham"},
    ]
    assert confusion_rows(rows) == [{"actual": "ham", "predicted": "spam"}, {"actual": "spam", "predicted": "ham"}]
    write_table(tmp_path / "predictions.parquet", rows, PREDICTION_SCHEMA)
    stored = read_table(tmp_path / "predictions.parquet", PREDICTION_SCHEMA)
    assert [row | {"probabilities": dict(row["probabilities"])} for row in stored] == rows


def test_every_message_needs_its_probability() -> None:
    with pytest.raises(ValueError):
        prediction_rows([message(0, 0)], np.array([[0.25, 0.75], [0.5, 0.5]]), CLASSES)


def test_the_difference_of_two_accuracies_counts_the_messages_that_one_alone_gets_right() -> None:
    """Of five messages the first is right on 4, the second on 2, both on 1; the order of the rows does not matter."""
    labels = [0, 0, 1, 1, 1]
    first, second = ([0, 0, 1, 1, 0], [1, 1, 0, 1, 1])
    rows = [
        [message(i, label) | {"predicted": given[i]} for i, label in enumerate(labels)] for given in (first, second)
    ]
    found = accuracy_difference(rows[0], rows[1][::-1])
    assert found["accuracy"] == pytest.approx(0.4)
    # (3 + 1) / 7 and (1 + 1) / 7, whose difference is 2 / 7 with a variance of (6 / 7 - 4 / 49) / 7
    arm = 1.959964 * math.sqrt((6 / 7 - 4 / 49) / 7)
    assert found["accuracy_low"] == pytest.approx(2 / 7 - arm, abs=1e-6)
    assert found["accuracy_high"] == pytest.approx(2 / 7 + arm, abs=1e-6)


def test_a_message_without_its_partner_is_not_passed_over() -> None:
    rows = [message(i, 1) | {"predicted": 1} for i in range(3)]
    with pytest.raises(KeyError):
        accuracy_difference(rows, rows[:2])


# more than two classes


THREE = ("a.b", "c", "d e")


def test_scores_of_three_classes_by_hand() -> None:
    """Of a.b two of three are found, of c one of two, of d e, which is called three times, the only one."""
    labels, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 2, 1, 2, 2])
    probabilities = np.where(np.arange(3) == predicted[:, None], 0.5, 0.25)
    scores = classification_scores(labels, probabilities, THREE)
    assert scores["classes"] == {
        "a.b": {"precision": 1.0, "recall": 2 / 3, "f1": 4 / 5},
        "c": {"precision": 1.0, "recall": 1 / 2, "f1": 2 / 3},
        "d e": {"precision": 1 / 3, "recall": 1.0, "f1": 1 / 2},
    }
    assert scores["accuracy"] == 4 / 6
    assert scores["macro_precision"] == pytest.approx(7 / 9)
    assert scores["macro_recall"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert scores["macro_f1"] == pytest.approx((4 / 5 + 2 / 3 + 1 / 2) / 3)
    assert scores["loss"] == pytest.approx((4 * math.log(2) + 2 * math.log(4)) / 6)
    assert scores["confusion"]["a.b_as_d e"] == scores["confusion"]["c_as_d e"] == 1
    assert sum(scores["confusion"].values()) == 6 and len(scores["confusion"]) == 9
    assert not {"precision", "recall", "f1", "auroc"} & scores.keys()


@pytest.mark.long
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1))
def test_scores_of_several_classes_are_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    """Of classes that occur; a class that is only predicted has no scores."""
    labels, predicted = (np.array(column) for column in zip(*pairs, strict=True))
    probabilities = np.where(np.arange(5) == predicted[:, None], 0.6, 0.1)
    classes, occurring = tuple("abcde"), sorted(set(labels.tolist()))
    scores = classification_scores(labels, probabilities, classes)
    theirs = {
        "precision": metrics.precision_score, "recall": metrics.recall_score, "f1": metrics.f1_score,
    }  # fmt: skip
    for name, score in theirs.items():
        options: Any = {"labels": occurring, "zero_division": 0.0}
        assert scores[f"macro_{name}"] == pytest.approx(score(labels, predicted, average="macro", **options))
        for k, expected in zip(occurring, score(labels, predicted, average=None, **options), strict=True):
            assert scores["classes"][classes[k]][name] == pytest.approx(expected)
    assert len(scores["classes"]) == len(occurring)
    assert scores["loss"] == pytest.approx(metrics.log_loss(labels, probabilities, labels=range(5)))
    counted = metrics.confusion_matrix(labels, predicted, labels=range(5)).ravel().tolist()
    assert list(scores["confusion"].values()) == counted


def test_the_confusions_of_many_classes_are_no_metrics() -> None:
    for n_classes, there in ((32, True), (33, False)):
        probabilities = np.full((2, n_classes), 1 / n_classes)
        scores = classification_scores(np.array([0, 1]), probabilities, [str(i) for i in range(n_classes)])
        assert ("confusion" in scores) == there
        assert scores["accuracy"] == 0.5  # the first of equals
