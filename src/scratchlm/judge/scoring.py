"""Scoring responses from 0 to 100: the judge by comparison with the reference answer, controls, and the mean scores."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from scratchlm.judge.overlap import normalise, token_f1
from scratchlm.judge.protocol import MAX_SCORE, Judge, Judgement, JudgeParams, ReferenceJudgeParams
from scratchlm.tasks.intervals import mean_interval

JUDGEMENT_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "model", "response")),
        ("score", pa.float64()),
        *((name, pa.string()) for name in ("reason", "raw_reply")),
    ]
)


def build_judge(params: JudgeParams) -> Judge:
    """The judge that the parameters name, ready to answer.

    Raises UserError if its server cannot be reached or lacks the model.
    """
    if isinstance(params, ReferenceJudgeParams):
        return ReferenceJudge()
    from scratchlm.judge.ollama import OllamaJudge  # its clients are a quarter of a second to import

    return OllamaJudge(params)


class ReferenceJudge:
    """100 for the reference answer up to case, punctuation and spacing; else half of the token overlap (F1).

    It knows one right answer, so it underrates others; it is a deterministic yardstick and not a language model.
    Source of the overlap: Rajpurkar et al. 2016, section 6.1.
    """

    identity: dict[str, Any] = {"backend": "reference", "version": 1}

    def score(self, entry: Mapping[str, str], response: str) -> Judgement:
        wanted, given = normalise(entry["output"]), normalise(response)
        if wanted == given:
            return Judgement(float(MAX_SCORE), "same as the reference answer", "")
        overlap = token_f1(wanted.split(), given.split())
        return Judgement(round(MAX_SCORE / 2 * overlap, 2), f"token overlap {overlap:.2f}, not the same", "")


def control_records(records: Sequence[Mapping[str, Any]], n: int) -> list[dict[str, Any]]:
    """Answers whose score is known: the reference itself, another task's reference, and nothing, `n` of each.

    A judge that does not tell them apart is not measuring; their means stand beside the result.
    """
    after = [dict(record) for record in records if record["model"] == "after"]
    chosen = after[:n]
    others = [*after[1:], *after[:1]]
    return [
        *({**record, "model": "control_reference", "response": record["output"]} for record in chosen),
        *(
            {**record, "model": "control_shuffled", "response": other["output"]}
            for record, other in zip(chosen, others, strict=False)
        ),
        *({**record, "model": "control_empty", "response": ""} for record in chosen),
    ]


def judge_records(judge: Judge, records: Sequence[Mapping[str, Any]], n_done: int = 0) -> Iterator[dict[str, Any]]:
    """One record of JUDGEMENT_SCHEMA per response, as it is judged. n_done: responses that are left out."""
    for record in tqdm(records[n_done:], total=len(records), initial=n_done, desc="judge", unit="response"):
        verdict = judge.score(record, record["response"])
        kept = {field: record[field] for field in ("id", "model", "response")}
        yield kept | {"score": verdict.score, "reason": verdict.reason, "raw_reply": verdict.raw_reply}


def judge_scores(judged: Sequence[Mapping[str, Any]], seed: int) -> dict[str, dict[str, Any]]:
    """Per model: the mean score over responses that got one, its 95 % interval, and how many got none."""
    scores: dict[str, dict[str, Any]] = {}
    for model in dict.fromkeys(row["model"] for row in judged):
        rows = [row for row in judged if row["model"] == model]
        given = [row["score"] for row in rows if row["score"] is not None]
        scores[model] = {"responses": len(rows), "failures": len(rows) - len(given)}
        if given:
            low, high = mean_interval(given, seed)
            scores[model] |= {"mean_score": sum(given) / len(given), "mean_low": low, "mean_high": high}
    return scores
