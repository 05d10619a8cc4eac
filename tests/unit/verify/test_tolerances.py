"""Which differences of metrics pass where the arithmetic differs, by hand."""

import pytest

from scratchlm.run.files import read_json
from scratchlm.verify.tolerances import TOLERANCES, deviations, stated
from tests.clones import REPOSITORY

CONFUSION = {"ham_as_ham": 78, "ham_as_spam": 0, "spam_as_ham": 0, "spam_as_spam": 72}
DOTTED = {"a.b_as_a.b": 78, "a.b_as_c.d": 0, "c.d_as_a.b": 0, "c.d_as_c.d": 72}


def beyond(committed: dict, rebuilt: dict) -> list[str]:
    return [deviation.key for deviation in deviations(committed, rebuilt) if not deviation.within]


@pytest.mark.parametrize(
    ("committed", "rebuilt", "out"),
    [
        ({"val": {"loss": 3.0}}, {"val": {"loss": 3.05}}, []),
        ({"val": {"loss": 3.0}}, {"val": {"loss": 3.07}}, ["val.loss"]),
        ({"untrained_val_loss": 3.0}, {"untrained_val_loss": 2.93}, ["untrained_val_loss"]),
        ({"loss": 0.002}, {"loss": 0.006}, []),
        ({"loss": 0.002}, {"loss": 0.008}, ["loss"]),
        ({"test": {"accuracy": 0.95}}, {"test": {"accuracy": 0.925}}, []),
        ({"test": {"accuracy": 0.95}}, {"test": {"accuracy": 0.91}}, ["test.accuracy"]),
        ({"instruct": {"mean_score": 70.0}}, {"instruct": {"mean_score": 72.9}}, []),
        ({"instruct": {"mean_score": 70.0}}, {"instruct": {"mean_score": 73.1}}, ["instruct.mean_score"]),
        (
            {"instruct": {"exact_matches": 66, "responses": 100}},
            {"instruct": {"exact_matches": 69, "responses": 100}},
            [],
        ),
        (
            {"instruct": {"exact_matches": 66, "responses": 100}},
            {"instruct": {"exact_matches": 70, "responses": 100}},
            ["instruct.exact_matches"],
        ),
        ({"exact_matches": 1, "responses": 6}, {"exact_matches": 2, "responses": 6}, []),
        (
            {"exact_matches": 66, "finished": 100, "responses": 100},
            {"exact_matches": 70, "finished": 96, "responses": 100},
            ["exact_matches", "finished"],
        ),
        (
            {"test": {"confusion": CONFUSION}},
            {"test": {"confusion": CONFUSION | {"ham_as_spam": 4, "ham_as_ham": 74}}},
            [],
        ),
        (
            {"test": {"confusion": CONFUSION}},
            {"test": {"confusion": CONFUSION | {"ham_as_spam": 5}}},
            ["test.confusion.ham_as_spam"],
        ),
        ({"test": {"confusion": DOTTED}}, {"test": {"confusion": DOTTED | {"a.b_as_c.d": 4}}}, []),
        (
            {"test": {"confusion": DOTTED}},
            {"test": {"confusion": DOTTED | {"a.b_as_c.d": 5}}},
            ["test.confusion.a.b_as_c.d"],
        ),
        ({"macro_f1": 0.9, "classes": {"a.b": {"f1": 0.5}}}, {"macro_f1": 0.88, "classes": {"a.b": {"f1": 0.52}}}, []),
        ({"classes": {"loss": {"f1": 0.5}}}, {"classes": {"loss": {"f1": 0.54}}}, ["classes.loss.f1"]),
        ({"classes": {"ham": 12}}, {"classes": {"ham": 13}}, ["classes.ham"]),
        ({"test": {"margin": 0.9, "kl_per_token": 0.3}}, {"test": {"margin": 0.94, "kl_per_token": 0.26}}, []),
        ({"test": {"chosen_reward": -0.2}}, {"test": {"chosen_reward": -0.26}}, ["test.chosen_reward"]),
        ({"tokens": 239094}, {"tokens": 239095}, ["tokens"]),
        ({"bytes_per_token": 3.76481}, {"bytes_per_token": 3.76482}, ["bytes_per_token"]),
        ({"sha256": {"a": "x"}}, {"sha256": {"a": "y"}}, ["sha256.a"]),
        ({"loss": 3.0}, {}, ["loss"]),
        ({}, {"loss": 3.0}, ["loss"]),
        ({"loss": 3.0}, {"loss": None}, ["loss"]),
    ],
)
def test_a_difference_passes_within_its_tolerance_only(committed, rebuilt, out):
    assert beyond(committed, rebuilt) == out


def test_what_is_out_of_tolerance_comes_first():
    found = deviations({"a": {"loss": 1.0}, "b": {"loss": 1.0}}, {"a": {"loss": 1.01}, "b": {"loss": 2.0}})
    assert [(deviation.key, deviation.within) for deviation in found] == [("b.loss", False), ("a.loss", True)]


def test_every_measured_metric_of_the_sample_has_a_tolerance_or_is_a_count_of_data():
    exact = {
        "parameters", "tensors_mapped", "trainable_parameters", "padded_tokens", "responses", "version",
        "tokens", "documents", "bytes", "records", "spam", "read", "vocab_size", "duplicates_across_splits",
        "bytes_per_token", "finetuning_vocab_size", "strength", "same_responses", "removed_duplicates",
        "test_also_in_instructions_train", "train_also_in_instructions_test",
    }  # fmt: skip
    numbers = set()
    for path in (REPOSITORY / "metrics").rglob("*.json"):
        changed = _with_other_numbers(read_json(path))
        numbers |= {d.key.rpartition(".")[2] for d in deviations(read_json(path), changed) if d.allowed == 0}
    assert numbers == exact


def test_the_tolerances_are_stated_in_words():
    assert stated().startswith("losses 0.005 or 2 % of the value; proportions 0.03; ")
    assert all(tolerance.name in stated() for tolerance in TOLERANCES)


def _with_other_numbers(value):
    if isinstance(value, dict):
        return {key: _with_other_numbers(item) for key, item in value.items()}
    return value + 1 if isinstance(value, int | float) else value
