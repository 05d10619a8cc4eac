"""A real language model judges, in this process and behind a server: SmolLM2-135M, which is too small for it."""

import json
from pathlib import Path

import pytest
import requests

from scratchlm.judge.pairwise import judge_pairs, pair_metrics, pairwise_judge
from scratchlm.judge.prompt import QUESTION_CUT
from scratchlm.judge.protocol import LlamaCppJudgeParams, OpenAIJudgeParams
from scratchlm.judge.scoring import build_judge, check_judge, control_records, judge_records, judge_scores
from scratchlm.judge.trust import check_trust
from scratchlm.run.errors import UserError
from scratchlm.run.files import sha256_of
from tests.unit.judge.ollama_stand_in import UNTRIED, llama_server

N_TASKS = 12


@pytest.mark.slow
def test_smollm2_judges_and_does_not_separate_its_controls(smollm2: Path, real: Path) -> None:
    sizes = UNTRIED | {"controls": N_TASKS, "prompt": "anchored", "context_tokens": 2048, "max_new_tokens": 128}
    params = LlamaCppJudgeParams(backend="llama.cpp", model=str(smollm2.resolve()), sha256=sha256_of(smollm2), **sizes)
    check_judge(params)
    tasks = json.loads((real / "instruction-data" / "instruction-data.json").read_text())[-165:][:N_TASKS]
    records = [{"id": f"{i}", "model": "instruct", "response": "", **task} for i, task in enumerate(tasks)]
    judge = build_judge(params)
    judged = list(judge_records(judge, control_records(records, N_TASKS)))
    assert len(judged) == 3 * N_TASKS
    assert sum(row["score"] is None for row in judged) <= 3
    assert all(json.loads(row["raw_reply"])["score"] == row["score"] for row in judged if row["score"] is not None)
    scores = judge_scores(judged, seed=123)
    print(scores)
    with pytest.raises(UserError, match="the judge does not separate its controls"):
        check_trust(judged, scores)
    assert judge.score(tasks[0], tasks[0]["output"]).raw_reply == judged[0]["raw_reply"]


@pytest.mark.slow
def test_smollm2_prefers_a_position_and_its_contradictions_are_ties(smollm2: Path, real: Path, tmp_path: Path) -> None:
    """The reference answer against that of another task."""
    sizes = UNTRIED | {"prompt": "anchored", "context_tokens": 2048, "max_new_tokens": 128}
    params = LlamaCppJudgeParams(backend="llama.cpp", model=str(smollm2.resolve()), sha256=sha256_of(smollm2), **sizes)
    tasks = json.loads((real / "instruction-data" / "instruction-data.json").read_text())[-165:][:N_TASKS]
    right = [{**task, "id": f"{i}", "model": "right", "response": task["output"]} for i, task in enumerate(tasks)]
    wrong = [{**row, "model": "wrong", "response": right[(i + 1) % N_TASKS]["output"]} for i, row in enumerate(right)]
    found = pair_metrics(judge_pairs(pairwise_judge(params, tmp_path), list(zip(wrong, right, strict=True))))
    print(found)
    assert (found["responses"], found["failures"] <= 2) == (N_TASKS, True)
    assert found["inconsistent"] >= N_TASKS / 2
    assert found["win_rate_low"] < 0.5 < found["win_rate_high"]


@pytest.mark.slow
def test_smollm2_behind_openais_api_gives_a_verdict_for_every_answer(smollm2: Path, real: Path, tmp_path: Path) -> None:
    """llama.cpp's own server over HTTP. The second run asks nothing, and the server's identity is recorded."""
    server = llama_server(smollm2, 2048)
    url = f"{server.listening_address}/v1"
    listed = requests.get(f"{url}/models", timeout=60).json()["data"][0]["id"]
    settings = {"base_url": url, "key_variable": None, "timeout_seconds": 300.0, "retries": 1, "seed": 1}
    params = OpenAIJudgeParams(
        backend="openai", model=listed, prompt="anchored", max_new_tokens=128, **UNTRIED | {"controls": 2} | settings
    )
    tasks = json.loads((real / "instruction-data" / "instruction-data.json").read_text())[-165:][:2]
    records = [{"id": f"{i}", "model": "instruct", "response": "", **task} for i, task in enumerate(tasks)]
    runs = []
    for _ in range(2):
        judge = build_judge(params, tmp_path)
        runs.append((list(judge_records(judge, control_records(records, 2))), judge.identity))
    assert runs[0] == runs[1]
    rows, identity = runs[0]
    assert len(rows) == len({row["id"] + row["model"] for row in rows}) == 6
    assert sum(row["score"] is None for row in rows) <= 1
    assert identity["model"] == listed and identity["owned_by"] == "llamacpp"
    assert identity["meta"]["n_params"] == 134_515_008
    print(identity)
    long = judge.score({"instruction": "word " * 4000, "input": "", "output": "b"}, "c")
    assert (long.score, long.reason) == (None, QUESTION_CUT)
    with pytest.raises(UserError, match="has no model 'gpt-4'"):
        build_judge(params.model_copy(update={"model": "gpt-4"}))
