"""Two judges of the same responses, and how far they agree."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from scipy.stats import spearmanr

from scratchlm.judge.agreement import agreement, krippendorff_alpha, spearman
from scratchlm.judge.protocol import JudgeParams, OllamaJudgeParams, ReferenceParams
from scratchlm.judge.scoring import check_judge, judge_scores, second_records, trial_records
from scratchlm.judge.trust import check_trust, trust
from scratchlm.run.context import Run
from scratchlm.run.errors import UserError
from scratchlm.run.files import read_json, read_table, write_table, write_text
from scratchlm.run.params import Section, check_params
from scratchlm.tasks.generation import RESPONSE_SCHEMA
from stages import judge as stage
from tests.unit.judge.ollama_stand_in import UNTRIED, ollama_stand_in

ASKED = {
    "prompt": "anchored", "model": "llama3", "timeout_seconds": 20.0, "retries": 0, "seed": 1, "max_new_tokens": 128,
}  # fmt: skip
NAMES = ("params", "responses", "replies", "judgements", "pairs", "metrics", "scores")
# of Krippendorff 2011, section D: 12 units, four observers
PUBLISHED = ["111", "2232", "3333", "3333", "2222", "1234", "4444", "1121", "2222", "555", "11", "3"]


def ollama(host: str = "http://localhost", **changes: Any) -> dict[str, Any]:
    return {"backend": "ollama", **ASKED, "host": host, "context_tokens": 2048} | changes


def record(number: int, model: str, response: str) -> dict[str, Any]:
    task = {"instruction": "Say it.", "input": "", "output": f"It is {number}."}
    return {"id": f"{number}", "model": model, "response": response, "finished": True, **task}


def judged(**scores: list[float | None]) -> list[dict[str, Any]]:
    return [
        {"id": f"{i}", "model": model, "response": "?", "score": score, "reason": "", "raw_reply": "?"}
        for model, given in scores.items()
        for i, score in enumerate(given)
    ]


# the measures


def test_krippendorffs_published_example() -> None:
    units = [[float(value) for value in unit] for unit in PUBLISHED]
    assert krippendorff_alpha(units) == pytest.approx(0.849, abs=5e-4)
    binary = list(zip(map(float, "0100000010"), map(float, "1110010000"), strict=True))  # section A
    assert krippendorff_alpha(binary) == pytest.approx(0.095, abs=5e-4)


@pytest.mark.parametrize(
    ("items", "alpha"),
    [
        ([(1, 2), (3, 3)], 8 / 11),  # variances: 1/2 and 0 within, (25 + 1 + 9 + 9) / 16 / 3 of all four
        ([(0, 0), (50, 50), (100, 100)], 1.0),
        ([(0, 100), (100, 0)], -0.5),  # 5000 within each, 10000 / 3 of all: worse than chance
        ([(1, 2), (3, 3), (50,)], 8 / 11),
        ([(7, 7), (7, 7)], None),
        ([], None),
    ],
)
def test_alpha_is_one_less_the_disagreement_over_that_of_chance(
    items: Sequence[Sequence[float]], alpha: float | None
) -> None:
    assert krippendorff_alpha(items) == (None if alpha is None else pytest.approx(alpha))


@pytest.mark.parametrize(
    ("first", "second"),
    [([1, 2, 3], [10, 20, 30]), ([1, 2, 3], [3, 2, 1]), ([1, 1, 2, 5], [3, 0, 3, 3]),
     ([4, 1, 1, 9, 9, 9], [0, 1, 2, 2, 5, 5])],
)  # fmt: skip
def test_spearmans_correlation_is_scipys(first: list[float], second: list[float]) -> None:
    assert spearman(first, second) == pytest.approx(spearmanr(first, second).statistic)


def test_there_is_no_correlation_where_nothing_varies() -> None:
    for values in ([], [1.0], [2.0, 2.0, 2.0]):
        assert spearman(values, values) is None


def test_agreement_is_over_the_responses_that_both_scored_without_the_controls() -> None:
    rows = judged(
        instruct=[1.0, 3.0, 50.0, None, 8.0], second_instruct=[2.0, 3.0, None, 4.0],
        control_empty=[0.0], second_control_empty=[100.0], repeat_1=[9.0],
    )  # fmt: skip
    assert agreement(rows) == {"items": 2, "alpha": pytest.approx(8 / 11), "spearman": 1.0}
    assert agreement(judged(instruct=[1.0, 3.0], repeat_1=[1.0, 2.0])) == {}
    assert agreement(judged(instruct=[1.0, None], second_instruct=[None, 1.0])) == {"items": 0}
    assert agreement(judged(instruct=[5.0, 5.0], second_instruct=[5.0, 5.0])) == {"items": 2}


# the second judge


def test_the_second_judge_gets_the_responses_and_controls_and_no_repetition() -> None:
    records = [record(i, model, "?") for model in ("base", "instruct") for i in range(3)]
    params = OllamaJudgeParams(**ollama() | UNTRIED | {"controls": 1, "repeats": 1})
    found = second_records(records + trial_records(records, params))
    assert {row["model"] for row in found} >= {"second_base", "second_instruct"}
    assert not any("repeat" in row["model"] for row in found)
    assert [{**row, "model": row["model"].removeprefix("second_")} for row in found][:6] == records


class Params(Section):
    judge: JudgeParams


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"controls": 2}, "judge.second unknown key controls; allowed are "),
        ({"second": None}, "judge.second unknown key second"),
        ({"max_new_tokens": 1}, "judge.second.max_new_tokens is 1: must be greater than or equal to 16"),
        ({"backend": "none"}, "judge.second.backend is 'none': must be one of"),
    ],
)
def test_a_mistake_in_the_second_section_is_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    section = ollama() | UNTRIED | {"second": ollama() | changes}
    with pytest.raises(UserError) as error:
        check_params({"judge": section}, Params, source="params.yaml")
    assert str(error.value).startswith(f"params.yaml: {sentence}")
    assert "\n" not in str(error.value)


def test_the_reference_judge_has_no_second_and_can_be_one() -> None:
    adapter = TypeAdapter(JudgeParams)
    with pytest.raises(ValidationError):
        adapter.validate_python({"backend": "reference", "controls": 1, "second": None})
    found = adapter.validate_python(ollama() | UNTRIED | {"second": {"backend": "reference"}})
    assert found.second == ReferenceParams(backend="reference")


def test_a_second_judge_that_cannot_begin_is_refused_with_its_own_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    second = {"backend": "openai", **ASKED, "base_url": "http://here/v1", "key_variable": "MY_KEY"}
    params = OllamaJudgeParams(**ollama() | UNTRIED | {"second": second})
    with pytest.raises(
        UserError, match=r"^judge\.second\.key_variable is MY_KEY, but .* not set; .*judge\.second\.key_v"
    ):
        check_judge(params)


def judge_with_two(folder: Path, host: str, second: dict[str, Any], controls: int = 2) -> dict[str, Any]:
    """Run the stage on three responses of which two are right; return its metrics."""
    variants = {"base": "gpt2-nano", "instruct": "finetune_instruct"}
    for name in variants:
        rows = [record(i, name, f"It is {min(i, 1)}.") for i in range(3)]
        write_table(folder / "responses" / f"{name}.parquet", rows, RESPONSE_SCHEMA)
    section = ollama(host) | UNTRIED | {"controls": controls, "repeats": 1, "second": second}
    write_text(folder / "params", json.dumps({"seed": 1, "variants": variants, "judge": section}))
    stage.main(Run(), **{name: folder / name for name in NAMES})
    return read_json(folder / "metrics")


def compares(request: dict[str, Any]) -> str:
    """A language model that finds what is right; the larger one is less generous."""
    reference, response = re.findall(
        r"<(?:reference|response)>\n(.*?)\n</", request["messages"][1]["content"], re.DOTALL
    )
    best = 90 if request["model"] == "llama3:70b" else 100
    return json.dumps({"reason": "x", "score": best if response == reference else 0})


def test_both_judges_have_a_record_of_every_response_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    with ollama_stand_in(compares) as server:
        runs = [judge_with_two(tmp_path, server.host, ollama(server.host, model="llama3:70b")) for _ in range(2)]
        rows = read_table(tmp_path / "judgements")
        asked = [json.dumps(request) for request in server.requests]
    assert runs[0] == runs[1]
    assert len(asked) == len(set(asked)) + 1  # in another order
    first = {(row["model"], row["id"]): row for row in rows}
    again = {key for key in first if key[0].startswith(("second_", "repeat_", "reordered"))}
    for model, name in first.keys() - again:
        assert first[f"second_{model}", name]["response"] == first[model, name]["response"]
    assert [row["score"] for row in rows if row["model"] == "second_instruct"] == [90.0, 90.0, 0.0]
    found = runs[0]["agreement"]
    assert (found["items"], found["spearman"]) == (6, 1.0)
    assert found["alpha"] == pytest.approx(1 - 4 * 2 * 50 / (72_400 - 760**2 / 12) * 11 / 12, rel=1e-5)  # by hand
    assert found["judge"]["model"] == "llama3:70b"
    assert runs[0]["judge"]["model"] == "llama3"
    assert runs[0]["second_control_reference"]["mean_score"] == 90
    assert runs[0]["trust"]["verdict"] == "the controls separate"


def test_the_reference_judge_as_the_second(tmp_path: Path) -> None:
    with ollama_stand_in(compares) as server:
        found = judge_with_two(tmp_path, server.host, {"backend": "reference"})
    assert found["agreement"]["judge"]["backend"] == "reference"
    assert found["agreement"]["items"] == 6


def test_a_second_judge_that_does_not_separate_its_controls_ends_the_stage(tmp_path: Path) -> None:
    def handler(request: dict[str, Any]) -> str:
        return '{"reason": "x", "score": 7}' if request["model"] == "llama3:70b" else compares(request)

    with (
        ollama_stand_in(handler) as server,
        pytest.raises(
            UserError, match=r"^the second judge does not separate its controls .*other judge\.second\.model"
        ),
    ):
        judge_with_two(tmp_path, server.host, ollama(server.host, model="llama3:70b"))
    assert not (tmp_path / "metrics").exists()


def test_a_second_judge_without_scores_is_named_by_its_section() -> None:
    rows = judged(instruct=[1.0], second_instruct=[None])
    with pytest.raises(UserError, match=r"\(second_instruct\) have no score.* choose another judge\.second\.model"):
        check_trust(rows, judge_scores(rows, seed=1))


def test_little_agreement_is_a_doubt_and_the_seconds_failures_are_its_own() -> None:
    controls = {"control_reference": [100.0], "control_shuffled": [0.0], "control_empty": [0.0]}
    rows = judged(instruct=[0.0, 100.0, 50.0], second_instruct=[100.0, 0.0, None], **controls)
    found = trust(rows, judge_scores(rows, seed=1))
    assert found["failed_share"] == 0
    assert found["verdict"] == "the controls separate; but the second judge agrees with it too little (alpha -0.5)"
