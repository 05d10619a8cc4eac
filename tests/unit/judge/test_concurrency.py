"""Requests at once change no record: counted at the server. test_replies.py has a kill."""

import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from scratchlm.judge.protocol import OllamaJudgeParams, OpenAIJudgeParams
from scratchlm.judge.scoring import build_judge, check_judge, judge_records
from scratchlm.run.errors import UserError
from tests.unit.judge.ollama_stand_in import UNTRIED, Answer, OllamaStandIn, Refusal, ollama_stand_in

TASK = {"model": "instruct", "instruction": "a", "input": "", "output": "b", "finished": True}
RECORDS = [TASK | {"id": str(i), "response": f"answer {i % 9}"} for i in range(12)]  # the last three are repetitions
ONES = {"prompt": "anchored", "model": "llama3:latest", "timeout_seconds": 20.0, "seed": 1, "max_new_tokens": 128}


def params(server: OllamaStandIn, backend: str, **changes: Any) -> Any:
    if backend == "openai":
        own: dict[str, Any] = {"base_url": f"{server.host}/v1", "key_variable": None}
        return OpenAIJudgeParams(**{"backend": backend, "retries": 1, **ONES, **UNTRIED, **own, **changes})
    own = {"host": server.host, "context_tokens": 2048}
    return OllamaJudgeParams(**{"backend": backend, "retries": 1, **ONES, **UNTRIED, **own, **changes})


@pytest.mark.parametrize("backend", ["ollama", "openai"])
def test_requests_at_once_change_no_record_and_ask_no_question_twice(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every reply waits until three questions are asked; "answer 4" is unusable and asked again."""
    together, counting = threading.Barrier(3), threading.Lock()
    n_now = n_most = 0

    def handler(request: dict[str, Any]) -> Answer:
        nonlocal n_now, n_most
        (number,) = map(int, re.findall("answer ([0-9])", str(request["messages"])))
        with counting:
            n_now += 1
            n_most = max(n_most, n_now)
        if number < 3 and at_once > 1:
            together.wait(timeout=20)
        with counting:
            n_now -= 1
        return "nonsense" if number == 4 else json.dumps({"reason": f"é {number}", "score": 10 * number})

    found = {}
    with ollama_stand_in(handler) as server:
        for at_once in (1, 3):
            monkeypatch.setenv("SCRATCHLM_JUDGE_REQUESTS", str(at_once))
            n_before = len(server.requests)
            judge = build_judge(params(server, backend), tmp_path / str(at_once))
            rows = list(judge_records(judge, RECORDS))
            found[at_once] = rows, judge.identity, len(server.requests) - n_before, n_most
            n_most = 0
    assert found[3][:3] == found[1][:3]
    assert [row["score"] for row in found[3][0]] == [0, 10, 20, 30, None, 50, 60, 70, 80, 0, 10, 20]
    assert [row["id"] for row in found[3][0]] == [record["id"] for record in RECORDS]
    assert (found[3][2], found[1][3], found[3][3]) == (10, 1, 3)


def test_trouble_that_meets_several_requests_ends_the_run_later_and_a_refusal_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRATCHLM_JUDGE_REQUESTS", "2")
    with ollama_stand_in(lambda request: Refusal(503, "server busy")) as server:
        judge = build_judge(params(server, "openai", retries=0), tmp_path)
        with pytest.raises(UserError, match=r"answered 503 \(server busy\), and so for 6 questions in a row; "):
            list(judge_records(judge, RECORDS))
        assert len(server.requests) >= 6
    with (
        ollama_stand_in(lambda request: Refusal(403, "no credit")) as server,
        pytest.raises(UserError, match="no credit"),
    ):
        list(judge_records(build_judge(params(server, "openai"), tmp_path), RECORDS))
    assert not list(tmp_path.iterdir())


def test_a_number_of_requests_that_is_none_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCHLM_JUDGE_REQUESTS", "65")
    with (
        ollama_stand_in(lambda request: "") as server,
        pytest.raises(UserError, match="^SCRATCHLM_JUDGE_REQUESTS is '65', but must be an integer from 1 to 64; "),
    ):
        check_judge(params(server, "ollama"))
