"""The baseline: what it learns, what it cannot, and that it is scikit-learn's optimum."""

from typing import Any

import numpy as np
import pytest

from scratchlm.data.messages import Messages
from scratchlm.run.errors import UserError
from scratchlm.tasks.bag_of_words import STRENGTHS, Baseline, bag_of_words


def split(texts: dict[str, int], times: int = 1) -> list[dict[str, Any]]:
    rows = [(text, label) for text, label in texts.items() for _ in range(times)]
    return [{"id": str(i), "text": text, "label": label} for i, (text, label) in enumerate(rows)]


def splits(texts: dict[str, int]) -> dict[str, list[dict[str, Any]]]:
    return {"train": split(texts, 4), "val": split(texts), "test": split(texts)}


def fitted(splits: dict[str, list[dict[str, Any]]]) -> Baseline:
    n_classes = 1 + max(row["label"] for rows in splits.values() for row in rows)
    return bag_of_words(Messages(splits, tuple("abcdef"[:n_classes])))


def test_words_signs_and_pairs_of_neighbours_tell_classes_apart() -> None:
    found = fitted(splits({"win a prize": 1, "not bad": 1, "bad, not": 0, "see you!": 0, "see you": 1}))
    assert found.metrics["test"]["accuracy"] == 1.0
    assert found.metrics["strength"] == max(STRENGTHS)  # val has the messages of train, so the closest fit is best
    terms = ["win", "a", "prize", "win a", "a prize", "not", "bad", "not bad", ",", "bad ,", ", not"]
    assert found.metrics["trainable_parameters"] == 1 + len([*terms, "see", "you", "!", "see you", "you !"])


def test_what_differs_in_a_far_order_alone_is_not_told_apart() -> None:
    """Both have the same words and pairs: a b, b c, c a, a b and so on in a ring."""
    found = fitted(splits({"a b c a": 1, "b c a b": 0, "c a b c": 0, "a b c a b c a": 1}))
    same = fitted({name: split({"x y x y x": 1, "x y x  y x": 0}, 2) for name in ("train", "val", "test")})
    assert found.metrics["test"]["accuracy"] == 1.0
    np.testing.assert_allclose(same.probabilities["test"], 0.5, atol=1e-6)


def test_the_strength_is_that_of_the_lowest_val_loss() -> None:
    """Labels of val that contradict those of train ask for the weakest fit."""
    texts = {"good news": 1, "bad news": 0}
    contradicting = splits(texts) | {"val": split({text: 1 - label for text, label in texts.items()})}
    assert fitted(contradicting).metrics["strength"] == min(STRENGTHS)


def test_the_fit_is_the_optimum_within_the_digits_that_are_kept() -> None:
    """Its gradient by hand: of sum of log losses times strength plus half of the squared weights, 0 at the optimum."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    rows = splits({"win a prize now": 1, "prize": 1, "see you now": 0, "now or never": 0, "a": 0})
    found = fitted(rows)
    vectorizer = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]", ngram_range=(1, 2), sublinear_tf=True)
    x = vectorizer.fit_transform([row["text"] for row in rows["train"]])
    y = [row["label"] for row in rows["train"]]
    other = LogisticRegression(C=found.metrics["strength"], solver="lbfgs", tol=1e-10, max_iter=10_000).fit(x, y)
    expected = other.predict_proba(vectorizer.transform([row["text"] for row in rows["test"]]))
    np.testing.assert_allclose(found.probabilities["test"], expected, atol=2e-6)
    np.testing.assert_allclose(found.probabilities["test"].round(6), found.probabilities["test"], rtol=0, atol=1e-15)


def test_messages_without_a_word_are_one_sentence() -> None:
    with pytest.raises(UserError, match=r"^the training messages are all blank"):
        fitted(splits({" ": 1, "  ": 0}))


def test_three_classes_are_scikit_learns_regression_of_several_classes() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    rows = splits({"win a prize now": 0, "prize": 0, "see you now": 1, "now or never": 1, "a": 2, "or you": 2})
    found = fitted(rows)
    assert found.metrics["test"]["accuracy"] == 1.0
    vectorizer = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]", ngram_range=(1, 2), sublinear_tf=True)
    x = vectorizer.fit_transform([row["text"] for row in rows["train"]])
    y = [row["label"] for row in rows["train"]]
    assert found.metrics["trainable_parameters"] == 3 * (x.shape[1] + 1)
    other = LogisticRegression(C=found.metrics["strength"], solver="lbfgs", tol=1e-10, max_iter=10_000).fit(x, y)
    expected = other.predict_proba(vectorizer.transform([row["text"] for row in rows["test"]]))
    np.testing.assert_allclose(found.probabilities["test"], expected, atol=2e-6)
    assert found.probabilities["test"].shape == (6, 3)
