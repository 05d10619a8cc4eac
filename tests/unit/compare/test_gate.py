"""Conditions on a comparison, and whether they hold."""

import pytest

from scratchlm.compare.changes import Changes
from scratchlm.compare.compare import BETTER, NO_EVIDENCE, NOT_COMPARED, SAME, WORSE, Comparison, Row
from scratchlm.compare.gate import parse_conditions, reasons
from scratchlm.run.errors import UserError

ROWS = [
    Row("finetune_spam.test.accuracy", 0.95, 0.93, -0.02, NO_EVIDENCE, (-0.05, 0.01), 150),
    Row("finetune_spam.test.loss", 0.3, 0.25, -0.05, BETTER, (-0.08, -0.02), 150),
    Row("generate/instruct.exact_matches", 66, 50, -16.0, WORSE, (-26.3, -5.1), 110),
    Row("finetune_spam.test.classes.ham.f1", 0.9, 0.8, -0.1, WORSE, (-0.2, -0.05), 150),
    Row("pretrain.val.loss", 3.5, 3.5, 0.0, SAME, None, 207),
    Row("tokenize.vocab_size", 1024, 1030, 6),
    Row("ablate_spam/new.padded_tokens", None, 95, None),
]
JUDGED = Row("judge.instruct.mean_score", 72.7, 60.0, None, NOT_COMPARED, note="the judges differ")


def comparison(*more: Row, warnings: tuple[str, ...] = ()) -> Comparison:
    sides: tuple = ("main", "longer")
    return Comparison(*sides, [*ROWS, *more], Changes([], [], [], []), [*warnings])


def found(*texts: str, **given: tuple[str, ...]) -> list[str]:
    return reasons(parse_conditions(texts), [comparison(**given)])


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ("worse", "generate/instruct.exact_matches is worse, 66 → 50"),
        ("finetune_spam.test.classes.ham.f1 worse", "finetune_spam.test.classes.ham.f1 is worse, 0.9 → 0.8"),
        ("finetune_spam.test.loss worse", None),
        ("pretrain.val.loss worse", None),
        ("finetune_spam.test.accuracy < 0.94", "finetune_spam.test.accuracy is 0.93, below 0.94"),
        ("finetune_spam.test.accuracy<0.93", None),
        ("finetune_spam.test.loss > .2", "finetune_spam.test.loss is 0.25, above 0.2"),
        ("finetune_spam.test.loss > 2.5e-1", None),
        ("finetune_spam.test.accuracy drops 0.02", "finetune_spam.test.accuracy drops by 0.02 or more, 0.95 → 0.93"),
        ("finetune_spam.test.accuracy drops 0.021", None),
        ("finetune_spam.test.loss drops 0.05", "finetune_spam.test.loss drops by 0.05 or more, 0.3 → 0.25"),
        ("finetune_spam.test.loss rises 0.01", None),
        ("tokenize.vocab_size rises 6", "tokenize.vocab_size rises by 6 or more, 1,024 → 1,030"),
        ("ablate_spam/new.padded_tokens < 100", "ablate_spam/new.padded_tokens is 95, below 100"),
    ],
)
def test_a_condition_holds_or_not(condition: str, reason: str | None) -> None:
    assert found(condition) == ([f"longer: {reason} (--fail-if {condition!r})"] if reason else [])


def test_each_condition_is_looked_for_in_each_comparison() -> None:
    conditions = parse_conditions(["worse", "tokenize.vocab_size > 1000"])
    other = comparison()._replace(second="other")  # type: ignore[arg-type]
    assert [each.split(":")[0] for each in reasons(conditions, [comparison(), other])] == ["longer"] * 2 + ["other"] * 2


@pytest.mark.parametrize("text", ["", "better", "a b worse", "a <", "a < b", "a = 3", "a drops", "< 3", "a drops3"])
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_conditions([text])
    assert str(caught.value).startswith(
        f"--fail-if is {text!r}, but must be `worse`, `METRIC worse`, or a metric with <,"
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("worse", "judge.instruct.mean_score cannot be told: the judges differ"),
        ("judge.instruct.mean_score worse", "judge.instruct.mean_score cannot be told: the judges differ"),
        ("judge.instruct.mean_score drops 1", "judge.instruct.mean_score cannot be told: the judges differ"),
        ("finetune_spam.test.acuracy < 1", "finetune_spam.test.acuracy (did you mean finetune_spam.test.accuracy?)"),
        ("tokenize.vocab_size worse", "longer compared with main lacks a verdict on tokenize.vocab_size; "),
        ("ablate_spam/new.padded_tokens drops 1", "lacks the metric ablate_spam/new.padded_tokens; --format json"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_an_error_and_never_passes(text: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        reasons(parse_conditions([text]), [comparison(JUDGED)])
    assert str(caught.value).startswith(f"--fail-if {text!r}: ") and sentence in str(caught.value)
    assert reasons(parse_conditions(["judge.instruct.mean_score < 70"]), [comparison(JUDGED)])


def test_results_that_are_out_of_date_never_pass() -> None:
    with pytest.raises(UserError, match="^--fail-if 'worse': longer is not built"):
        found("worse", warnings=("longer is not built from what it holds",))
