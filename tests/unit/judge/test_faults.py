"""Whatever a judge's server does, the stage gives a record for each response: a score, or a failure that says why."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from scratchlm.judge.protocol import JudgeParams
from scratchlm.judge.scoring import JUDGEMENT_SCHEMA, build_judge, judge_records
from scratchlm.run.files import read_table, write_table
from tests.unit.judge.ollama_stand_in import UNTRIED, Answer, Cut, RawAnswer, Refusal, Reply, ollama_stand_in

GOOD = '{"reason": "It is right.", "score": 90}'
N, FAULTY = 5, 2  # responses, and the position of the one whose question meets the fault


def content(text: str) -> Reply:
    return Reply({"message": {"role": "assistant", "content": text}})


def hang(request: dict[str, Any]) -> str:
    threading.Event().wait(1)
    return GOOD


# what the server does, the score, and the reason or the reply that the record holds
FAULTS: dict[str, tuple[Answer | Callable[[dict[str, Any]], Answer], float | None, str]] = {
    "429": (Refusal(429, "rate limit"), None, "the server answered 429 (rate limit)"),
    "500": (Refusal(500, "runner has terminated"), None, "the server answered 500 (runner has terminated)"),
    "503": (Refusal(503, "server busy"), None, "the server answered 503 (server busy)"),
    "error under 200": (RawAnswer(b'{"error": "no memory"}'), None, "the server answered with an error (no memory)"),
    "hang": (hang, None, "the server gave no reply within 0.3 seconds"),
    "cut": (Cut(b'{"message": {"content": "{'), None, "the server broke off its reply ("),
    "10 MB": (RawAnswer(b" " * 10_000_000), None, "it answered with more than 1048576 bytes"),
    "no JSON around": (RawAnswer(b"<html>soon</html>"), None, "<html>soon</html>"),
    "two lines of JSON": (RawAnswer(b'{"message": {"content": "a"}}\n{"done": true}'), None, '"done"'),
    "bytes": (RawAnswer(b"\xff\xfe\x00garbage\x80"), None, "garbage"),
    "invalid JSON": ('{"reason": "x", "score": 90', None, '"score": 90'),
    "fence": (f"```json\n{GOOD}\n```", 90.0, "It is right."),
    "no score": ('{"reason": "x"}', None, '{"reason": "x"}'),
    "other names": ('{"Reason": "x", "Score": 90}', None, '"Score"'),
    "list": (f"[{GOOD}]", None, GOOD),
    "85/100": ('{"reason": "x", "score": "85/100"}', None, "85/100"),
    "101": ('{"reason": "x", "score": 101}', None, "101"),
    "text": ("A good answer: 90 of 100.", None, "A good answer"),
    "empty": ("", None, ""),
    "half a pair": (content('{"reason": "\ud83d", "score": 90}'), None, "d83d"),
    "half a pair in JSON": ('{"reason": "\\ud83d", "score": 90}', None, "d83d"),
    "control characters": ('{"reason": "\\u0000\\u001b[2J\\u202e", "score": 90}', 90.0, "\x00\x1b[2J\u202e"),
    "other scripts": ('{"reason": "回答正确 ✅ 👩‍👩‍👧", "score": 90}', 90.0, "回答正确 ✅ 👩‍👩‍👧"),
    "thoughts": (f'<think>Perhaps {{"score": 3}}.</think>{GOOD}', 90.0, "It is right."),
    "thoughts only": (Reply({"message": {"content": "", "thinking": "Hmm"}, "done_reason": "length"}), None, "Hmm"),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("backend", ["ollama", "openai"])
def test_every_response_has_a_record_whatever_the_server_does(
    backend: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    fault, score, words = FAULTS[name]

    def handler(request: dict[str, Any]) -> Answer:
        if f"answer {FAULTY}" not in str(request["messages"]):
            return GOOD
        return fault(request) if callable(fault) else fault

    with ollama_stand_in(handler) as server:
        settings: dict[str, Any] = {"model": "llama3:latest", "timeout_seconds": 0.3, "retries": 1, "seed": 1}
        settings |= {"max_new_tokens": 128, **UNTRIED, "prompt": "anchored"}
        if backend == "ollama":
            settings |= {"host": server.host, "context_tokens": 2048}
        else:
            settings |= {"base_url": f"{server.host}/v1", "key_variable": None}
        judge = build_judge(TypeAdapter(JudgeParams).validate_python({"backend": backend, **settings}))
        task = {"model": "instruct", "instruction": "a", "input": "", "output": "b"}
        records = [task | {"id": str(i), "response": f"answer {i}"} for i in range(N)]
        rows = list(judge_records(judge, records))
    write_table(tmp_path / "judge.parquet", rows, JUDGEMENT_SCHEMA)
    assert read_table(tmp_path / "judge.parquet") == rows
    assert [row["id"] for row in rows] == [record["id"] for record in records]
    assert [row["score"] for row in rows] == [score if i == FAULTY else 90.0 for i in range(N)]
    assert words in rows[FAULTY]["reason"] + rows[FAULTY]["raw_reply"]
    assert len(server.requests) == N + (score is None)
