"""A person's ratings: which responses are rated, their file, and what they say of the judge."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from scratchlm.judge.anchor import Anchored, anchored, corrected_mean
from scratchlm.judge.rating import HEAD, Ratings, add_rating, key_of, read_ratings, sample, score_of
from scratchlm.run.errors import UserError

FIRST = ",".join(HEAD)


def rows(**responses: list[str]) -> list[dict[str, Any]]:
    return [
        {"id": f"task-{i}", "model": model, "response": response}
        for model, given in responses.items()
        for i, response in enumerate(given)
    ]


# the sample


def test_the_sample_is_shuffled_by_the_seed_and_a_larger_one_begins_with_it() -> None:
    given = rows(base=[f"b{i}" for i in range(10)], instruct=[f"i{i}" for i in range(10)])
    found = sample(given, 1, 8)
    assert found == sample(list(reversed(given)), 1, 8) == sample(given, 1, 12)[:8]
    assert found != sample(given, 2, 8)
    assert {row["model"] for row in found} == {"base", "instruct"}
    assert len(sample(given, 1, 99)) == 20


def test_the_same_response_of_two_variants_is_rated_once() -> None:
    found = sample(rows(base=["red", "blue"], instruct=["red", "green"]), 1, 9)
    assert sorted((row["id"], row["response"]) for row in found) == [
        ("task-0", "red"), ("task-1", "blue"), ("task-1", "green")
    ]  # fmt: skip


# the file


def test_ratings_are_appended_and_read_again(tmp_path: Path) -> None:
    path, given = tmp_path / "new" / "ratings.csv", rows(instruct=["red", "half \ud83d pair", "blue"])
    assert read_ratings(path) == {}
    expected: Ratings = {}
    for row, score in zip(given, (70.0, None, 12.5), strict=True):
        before = path.read_bytes() if path.exists() else b""
        add_rating(path, key_of(row), score)
        assert path.read_bytes().startswith(before)
        expected[key_of(row)] = score
        assert read_ratings(path) == expected
    assert path.read_text().splitlines()[0] == "id,response_sha256,score"
    assert path.read_text().splitlines()[3].endswith(",12.5")


def test_an_id_with_a_comma_survives(tmp_path: Path) -> None:
    row = {"id": 'a,"b"', "response": "x"}
    add_rating(tmp_path / "r.csv", key_of(row), 5.0)
    assert read_ratings(tmp_path / "r.csv") == {key_of(row): 5.0}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("mine\n", r"r\.csv is no file of ratings, whose first line is id,response_sha256,score; name another with"),
        ("", r"r\.csv is no file of ratings"),
        (f"{FIRST}\na,b\n", r"r\.csv, line 2: 2 cells in place of 3; correct or delete the line"),
        (f"{FIRST}\na,b,1\n\n", r"line 3: 0 cells in place of 3"),
        (f"{FIRST}\na,b,101\n", r"line 2: '101' is no score from 0 to 100; correct or delete the line"),
        (f"{FIRST}\na,b,nan\n", r"line 2: 'nan' is no score"),
        (f"{FIRST}\na,b,1\na,b,2\n", r"line 3: this response has a rating in a line above"),
        (f"{FIRST}\na,b,1\na,c,", r"line 3: the last line has no end; complete or delete it"),
    ],
)
def test_a_broken_line_is_one_sentence_and_nothing_is_changed(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "r.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence) as error:
        read_ratings(path)
    assert "\n" not in str(error.value)
    assert path.read_text() == text


def test_other_bytes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not UTF-8 text; name another file with --file"):
        read_ratings(tmp_path / "r.csv")


def test_a_file_with_the_line_ends_of_windows_is_read(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_bytes(f"{FIRST}\r\na,b,1\r\n".encode())
    assert read_ratings(tmp_path / "r.csv") == {("a", "b"): 1.0}


@pytest.mark.parametrize(("text", "score"), [("0", 0), ("100", 100), ("7.5", 7.5), (" 3 ", 3), ("1e1", 10)])
def test_a_score_is_a_number_from_0_to_100(text: str, score: float) -> None:
    assert score_of(text) == score


@pytest.mark.parametrize("text", ["", "-1", "100.1", "inf", "nan", "85/100", "ten", "1_0_0_0"])
def test_nothing_else_is_a_score(text: str) -> None:
    assert score_of(text) is None


# what the ratings say


def judged(*scores: float | None) -> list[dict[str, Any]]:
    return [{"id": f"{i}", "response": "?", "score": score} for i, score in enumerate(scores)]


def ratings(*scores: float | None) -> Ratings:
    return {key_of({"id": f"{i}", "response": "?"}): score for i, score in enumerate(scores)}


def test_the_correction_by_hand() -> None:
    """Scores of the judge: 10, 20, 30, 40, 50. Of the person, for the first three: 20, 26, 44."""
    found = corrected_mean([10, 20, 30, 40, 50], [10, 20, 30], [20, 26, 44])
    assert found.mean == 30 + 10  # corrections: 10, 6, 14
    shared = 250 + 2 * 20  # variance of the five; covariance of (10, 20, 30) and (10, 6, 14)
    arm = stats.t.ppf(0.975, 2) * math.sqrt(shared / 5 + 16 / 3)
    assert found.interval == pytest.approx((40 - arm, 40 + arm))


def test_rating_everything_gives_the_persons_own_mean() -> None:
    by_judge, by_person = [90.0, 80.0, 70.0, 10.0], [50.0, 70.0, 20.0, 30.0]
    found = corrected_mean(by_judge, by_judge, by_person)
    assert found.mean == pytest.approx(np.mean(by_person))
    arm = stats.t.ppf(0.975, 3) * np.std(by_person, ddof=1) / 2
    assert found.interval == pytest.approx((found.mean - arm, found.mean + arm))


def test_the_interval_holds_the_truth_and_a_good_judge_makes_it_narrow() -> None:
    """The person's mean over the whole population is 50. The judge is 15 points too generous."""
    source = np.random.default_rng(1)
    held, widths, alone = 0, [], []
    for _ in range(400):
        person = source.normal(50, 20, 110)
        judge = person + 15 + source.normal(0, 6, 110)
        found = corrected_mean(judge.tolist(), judge[:20].tolist(), person[:20].tolist())
        assert found.interval
        held += found.interval[0] <= 50 <= found.interval[1]
        widths.append(found.interval[1] - found.interval[0])
        alone.append(2 * stats.t.ppf(0.975, 19) * np.std(person[:20], ddof=1) / np.sqrt(20))
    assert 0.93 <= held / 400 <= 0.98
    assert np.mean(widths) < 0.6 * np.mean(alone)


def test_agreement_is_over_the_responses_with_both_scores() -> None:
    found = anchored(judged(10, 20, None, 40, 50), ratings(20, 26, 99, None))
    arm = stats.t.ppf(0.975, 1) * 2  # differences: -10 and -6
    assert isinstance(found, Anchored)
    assert found[:3] == (2, 30, 23)
    assert found.difference.mean == -8 and found.difference.interval == pytest.approx((-8 - arm, -8 + arm))
    assert found.spearman == 1.0
    assert found.corrected.mean == 38


def test_one_rating_has_no_interval_and_none_nothing() -> None:
    found = anchored(judged(10, 20), ratings(50))
    assert found and found.difference == (-40, None) and found.corrected == (55, None) and found.spearman is None
    assert anchored(judged(10, 20), {}) is None
    assert anchored(judged(10, None), ratings(None, 5)) is None
