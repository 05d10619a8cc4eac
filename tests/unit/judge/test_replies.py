"""Nothing is asked twice: counted at the server."""

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from scratchlm.judge.protocol import OllamaJudgeParams
from scratchlm.judge.replies import Replies
from scratchlm.judge.scoring import build_judge, judge_all, judge_records
from scratchlm.run.files import read_table, write_table, write_text
from scratchlm.tasks.generation import RESPONSE_SCHEMA
from tests.clones import REPOSITORY
from tests.unit.judge.ollama_stand_in import UNTRIED, Refusal, ollama_stand_in

GOOD = '{"reason": "It is right.", "score": 90}'
TASK = {"model": "instruct", "instruction": "a", "input": "", "output": "b", "finished": True}
RECORDS = [TASK | {"id": str(i), "response": f"answer {i}"} for i in range(8)]


def params(host: str, **changes: Any) -> dict[str, Any]:
    given = {
        "backend": "ollama",
        **UNTRIED,
        "prompt": "anchored",
        "model": "llama3",
        "host": host,
        "timeout_seconds": 20.0,
    }
    sizes = {"context_tokens": 2048, "max_new_tokens": 128}
    return given | {"retries": 1, "seed": 1} | sizes | changes


def judged(host: str, replies: Path, **changes: Any) -> list[dict[str, Any]]:
    return list(judge_records(build_judge(OllamaJudgeParams(**params(host, **changes)), replies), RECORDS))


@pytest.mark.long
@pytest.mark.parametrize("at_once", [1, 3])
def test_a_killed_stage_resumes_without_asking_anything_twice(tmp_path: Path, at_once: int) -> None:
    """The server kills the stage when it is asked for the fifth time. Only what was not yet kept is asked again."""
    write_table(tmp_path / "responses" / "instruct.parquet", RECORDS, RESPONSE_SCHEMA)
    names = ("params", "responses", "replies", "judgements", "pairs", "metrics", "scores", "log")
    paths = {name: tmp_path / name for name in names} | {"responses": tmp_path / "responses"}
    command = [sys.executable, "-m", "stages.judge", *(word for name in names for word in (f"--{name}", paths[name]))]
    answered: Counter[str] = Counter()

    def handler(request: dict[str, Any]) -> str:
        if len(server.requests) == 5:
            os.kill(running.pid, signal.SIGKILL)
            running.wait()
        else:
            answered[json.dumps(request)] += 1
        return GOOD

    with ollama_stand_in(handler) as server:
        write_text(
            paths["params"],
            json.dumps({"seed": 1, "variants": {"instruct": "finetune_instruct"}, "judge": params(server.host)}),
        )
        ends = []
        for _ in range(2):
            variables = os.environ | {"SCRATCHLM_JUDGE_REQUESTS": str(at_once)}
            running = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL, env=variables)
            ends.append(running.wait())
        first = paths["judgements"].read_bytes()
        assert ends == [-signal.SIGKILL, 0]
        assert len(answered) == 8 and 8 <= sum(answered.values()) < 8 + at_once
        n_requests = len(server.requests)
        assert n_requests <= 8 + at_once
        subprocess.run(command, cwd=REPOSITORY, check=True, stderr=subprocess.DEVNULL)
        assert len(server.requests) == n_requests
        assert paths["judgements"].read_bytes() == first
    assert [row["id"] for row in read_table(paths["judgements"])] == [record["id"] for record in RECORDS]


def test_questions_in_another_order_are_asked_once_and_their_replies_kept_apart(tmp_path: Path) -> None:
    """A server whose replies depend on what it was asked before."""
    scores = iter(range(90, 60, -1))
    section = OllamaJudgeParams(**params("http://localhost", repeats=3))
    with ollama_stand_in(lambda request: json.dumps({"reason": "x", "score": next(scores)})) as server:
        given = section.model_copy(update={"host": server.host})
        runs = [judge_all(given, RECORDS[:4], tmp_path) for _ in range(2)]
        asked = [re.findall("answer ([0-9])", str(request["messages"]))[0] for request in server.requests]
    assert runs[0] == runs[1]
    assert "".join(asked) == "0123" + 2 * "012" + "210"
    rows = [row for row in runs[0][0] if row["model"] == "reordered"]
    assert [(row["id"], row["score"]) for row in rows] == [("2", 80.0), ("1", 79.0), ("0", 78.0)]
    assert len(list((tmp_path / "reordered").iterdir())) == 3


def test_a_repeated_run_asks_only_what_is_new(tmp_path: Path) -> None:
    with ollama_stand_in(lambda request: GOOD) as server:

        def asked(**changes: Any) -> int:
            before = len(server.requests)
            assert {row["score"] for row in judged(server.host, tmp_path, **changes)} == {90.0}
            return len(server.requests) - before

        assert [asked(), asked(), asked(timeout_seconds=9.0, retries=2)] == [8, 0, 0]
        assert [asked(seed=2), asked(max_new_tokens=64), asked(model="llama3:70b")] == [8, 8, 8]
        server.models["llama3:latest"] = "another digest"
        assert [asked(), asked()] == [8, 0]
        for path in tmp_path.glob("*.json"):
            path.write_text("damaged")
        assert [asked(), asked()] == [8, 0]


def test_an_unusable_reply_is_kept_and_trouble_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    answers: dict[str, Any] = {"answer 3": "nonsense", "answer 5": Refusal(500, "out of memory")}

    def handler(request: dict[str, Any]) -> Any:
        question = request["messages"][1]["content"]
        return next((answer for text, answer in answers.items() if text in question), GOOD)

    with ollama_stand_in(handler) as server:
        first = judged(server.host, tmp_path)
        assert [row["id"] for row in first if row["score"] is None] == ["3", "5"]
        assert len(server.requests) == 10
        answers.clear()
        second = judged(server.host, tmp_path)
        assert [row["id"] for row in second if row["score"] is None] == ["3"]
        assert len(server.requests) == 11
        assert second[3] == first[3]


def test_files_of_a_killed_run_are_deleted_and_no_others(tmp_path: Path) -> None:
    ours, others = tmp_path / f".{'a' * 64}.json.123.tmp", tmp_path / ".notes.tmp"
    for path in (ours, others):
        path.touch()
    Replies(tmp_path)
    assert list(tmp_path.iterdir()) == [others]
