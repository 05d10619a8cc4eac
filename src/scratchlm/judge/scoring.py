"""Score responses from 0 to 100 with a judge: the controls, one record per response, the mean scores."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from scratchlm.judge.protocol import Judge, JudgeParams, ReferenceJudgeParams
from scratchlm.judge.reference import ReferenceJudge
from scratchlm.tasks.intervals import mean_interval

_COLUMNS = ("id", "model", "response", "score", "reason", "raw_reply")
JUDGEMENT_SCHEMA = pa.schema([(name, pa.float64() if name == "score" else pa.string()) for name in _COLUMNS])


def build_judge(params: JudgeParams) -> Judge:
    """Return the judge that the parameters name, ready to answer.

    Raises UserError if its server cannot be reached or does not have the model.
    """
    if isinstance(params, ReferenceJudgeParams):
        return ReferenceJudge()
    from scratchlm.judge.ollama import OllamaJudge  # its HTTP clients take 0.25 seconds to import

    return OllamaJudge(params)


def control_records(records: Sequence[Mapping[str, Any]], n: int) -> list[dict[str, Any]]:
    """Return `n` records of each control: the reference answer, another task's reference, and an empty response.

    Their right scores are known. If a judge does not separate them, its other scores mean nothing.
    """
    after = [dict(record) for record in records if record["model"] == "after"]
    chosen, others = after[:n], [*after[1:], *after[:1]]
    shuffled = zip(chosen, others, strict=False)
    return [
        *({**record, "model": "control_reference", "response": record["output"]} for record in chosen),
        *({**record, "model": "control_shuffled", "response": other["output"]} for record, other in shuffled),
        *({**record, "model": "control_empty", "response": ""} for record in chosen),
    ]


def judge_records(judge: Judge, records: Sequence[Mapping[str, Any]], n_done: int = 0) -> Iterator[dict[str, Any]]:
    """Yield a record of JUDGEMENT_SCHEMA for each response, once it is judged; the first `n_done` are skipped."""
    for record in tqdm(records[n_done:], total=len(records), initial=n_done, desc="judge", unit="response"):
        verdict = judge.score(record, record["response"])
        named = {field: record[field] for field in ("id", "model", "response")}
        yield named | {"score": verdict.score, "reason": verdict.reason, "raw_reply": verdict.raw_reply}


def judge_scores(judged: Sequence[Mapping[str, Any]], seed: int) -> dict[str, dict[str, Any]]:
    """Return by model the mean score, its 95 % interval and how many responses have no score (not in the mean)."""
    scores: dict[str, dict[str, Any]] = {}
    for model in dict.fromkeys(row["model"] for row in judged):
        rows = [row for row in judged if row["model"] == model]
        given = [row["score"] for row in rows if row["score"] is not None]
        scores[model] = {"responses": len(rows), "failures": len(rows) - len(given)}
        if given:
            low, high = mean_interval(given, seed)
            scores[model] |= {"mean_score": math.fsum(given) / len(given), "mean_low": low, "mean_high": high}
    return scores
