"""The baseline of classification: logistic regression on TF-IDF of words and pairs of neighbouring words.

A classifier that is not better than this does not earn its cost. The features and the regression are scikit-learn's.
"""

from typing import Any, NamedTuple

import numpy as np

from scratchlm.data.messages import Messages
from scratchlm.run.errors import UserError
from scratchlm.tasks.scores import classification_scores, complementary

TERM = r"\w+|[^\w\s]"  # a word, or a punctuation mark
STRENGTHS = (1.0, 10.0, 100.0)  # C of the regression, the inverse of its L2 penalty; the val split selects one
TOLERANCE = 1e-12  # of the gradient: so near the optimum that machines differ only in the 14th digit
DIGITS = 6  # of a probability, which are then the same on every machine


class Baseline(NamedTuple):
    """metrics: scores by split, sizes and the strength. probabilities: of each class, (N, K) by split."""

    metrics: dict[str, Any]
    probabilities: dict[str, np.ndarray]


def bag_of_words(messages: Messages) -> Baseline:
    """A logistic regression on TF-IDF of words, punctuation and neighbouring pairs of them, fitted to the train split.

    Source: Salton and Buckley 1988, with the logarithm of a term's count.
    Raises UserError if the train split, which has all classes, has no word.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    texts = {split: [row["text"] for row in rows] for split, rows in messages.splits.items()}
    labels = {split: np.array([row["label"] for row in rows]) for split, rows in messages.splits.items()}
    vectorizer = TfidfVectorizer(token_pattern=TERM, ngram_range=(1, 2), sublinear_tf=True)
    if not any(map(str.strip, texts["train"])):
        raise UserError("the training messages are all blank, so nothing tells their classes apart; add words to them")
    vectorizer.fit(texts["train"])
    features = {split: vectorizer.transform(found) for split, found in texts.items()}
    found = {}
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, solver="newton-cg", tol=TOLERANCE, max_iter=1000)
        model.fit(features["train"], labels["train"])
        found[strength] = {split: complementary(model.predict_proba(x).round(DIGITS)) for split, x in features.items()}
    scores = {
        strength: {
            split: classification_scores(labels[split], given, messages.classes)
            for split, given in probabilities.items()
        }
        for strength, probabilities in found.items()
    }
    best = min(STRENGTHS, key=lambda strength: scores[strength]["val"]["loss"])
    n_scores = len(messages.classes) if len(messages.classes) > 2 else 1  # each with a weight per term, and a bias
    sizes = {"trainable_parameters": n_scores * (len(vectorizer.vocabulary_) + 1), "strength": best}
    return Baseline(scores[best] | sizes, found[best])
