"""A real language model judges in this process: SmolLM2-135M, which is too small for it."""

import json
from pathlib import Path

import pytest

from scratchlm.judge.protocol import LlamaCppJudgeParams
from scratchlm.judge.scoring import build_judge, check_judge, control_records, judge_records, judge_scores
from scratchlm.judge.trust import check_trust
from scratchlm.run.errors import UserError
from scratchlm.run.files import sha256_of

N_TASKS = 12


@pytest.mark.slow
def test_smollm2_judges_and_does_not_separate_its_controls(smollm2: Path, real: Path) -> None:
    sizes = {"controls": N_TASKS, "context_tokens": 2048, "max_new_tokens": 128}
    params = LlamaCppJudgeParams(backend="llama.cpp", model=str(smollm2.resolve()), sha256=sha256_of(smollm2), **sizes)
    check_judge(params)
    tasks = json.loads((real / "instruction-data" / "instruction-data.json").read_text())[-165:][:N_TASKS]
    records = [{"id": f"{i}", "model": "after", "response": "", **task} for i, task in enumerate(tasks)]
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
