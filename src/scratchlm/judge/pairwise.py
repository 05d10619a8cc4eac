"""Which of two responses to the same instruction is better? Asked in both orders, because judges prefer a position.

Source: Zheng et al. 2023, Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena, section 3.4.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from scratchlm.judge.protocol import MAX_SCORE, Judge, JudgeParams, Trials
from scratchlm.judge.scoring import build_judge, judge_records
from scratchlm.judge.trust import no_scores
from scratchlm.judge.win_rate import length_controlled_win_rate, win_rate
from scratchlm.run.errors import UserError

TEXTS, ANSWERS = ("baseline_response", "response"), ("reason", "raw_reply", "swapped_reason", "swapped_raw_reply")
PAIRWISE_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "baseline", "model", *TEXTS)),
        ("win", pa.float64()),
        ("consistent", pa.bool_()),
        *((name, pa.string()) for name in ANSWERS),
    ]
)
SAME = {"score": MAX_SCORE / 2, "reason": "the responses are the same", "raw_reply": ""}

Row = Mapping[str, Any]


def pairwise_judge(params: Trials, replies: Path) -> Judge:
    """Return the judge with the prompt that compares two responses. Raises UserError as build_judge."""
    return build_judge(params.model_copy(update={"prompt": "pairwise"}), replies)


def judge_variants(
    params: JudgeParams, rows: Sequence[Row], replies: Path
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the records of PAIRWISE_SCHEMA of all pairs of variants that the parameters name, and the metrics of each.

    Raises UserError as judge_pairs, or if one of the variants has no responses.
    """
    if not isinstance(params, Trials) or not params.pairwise:
        return [], {}
    pairs = {f"{model}_over_{baseline}": pairs_of(rows, baseline, model) for baseline, model in params.pairwise}
    judge = pairwise_judge(params, replies)
    records = {name: judge_pairs(judge, found) for name, found in pairs.items()}
    metrics = {name: pair_metrics(found) for name, found in records.items()}
    return [row for found in records.values() for row in found], {"pairwise": metrics | {"judge": judge.identity}}


def pairs_of(rows: Sequence[Row], baseline: str, model: str) -> list[tuple[Row, Row]]:
    """Return the responses of two variants to the same instructions. Raises UserError if one has no responses."""
    by_model = {name: {row["id"]: row for row in rows if row["model"] == name} for name in (baseline, model)}
    for name, found in by_model.items():
        if not found:
            raise UserError(
                f"judge.pairwise has {name!r}, but no responses of such a variant were generated; correct the name"
            )
    return [(row, by_model[model][name]) for name, row in by_model[baseline].items() if name in by_model[model]]


def judge_pairs(judge: Judge, pairs: Sequence[tuple[Row, Row]]) -> list[dict[str, Any]]:
    """Return a record of PAIRWISE_SCHEMA for each pair of rows of RESPONSE_SCHEMA, the baseline's first.

    win: 1 if the model's response is better in both orders, 0 if the baseline's is, 0.5 if neither is or the two
    answers contradict each other (not `consistent`), None if an answer is no verdict. The answers are those for the
    order with the model's response first, then `swapped`. Responses that are the same are a tie without a question.
    Raises UserError as judge_records, or if half of the pairs or more have no verdict.
    """
    differing = [(row, other) for other, row in pairs if row["response"] != other["response"]]
    shown = [order for row, other in differing for order in ((row, other), (other, row))]
    answers = list(judge_records(judge, [{**first, "rival": second["response"]} for first, second in shown]))
    left, records = iter(answers), []
    for other, row in pairs:
        same = row["response"] == other["response"]
        records.append(_record(other, row, *((SAME, SAME) if same else (next(left), next(left)))))
    n_failed = sum(record["win"] is None for record in records)
    if records and 2 * n_failed >= len(records):
        last = next(answer for answer in reversed(answers) if answer["score"] is None)
        raise no_scores(f"{n_failed} of {len(records)} pairs of responses have no verdict", last)
    return records


def pair_metrics(records: Sequence[Row]) -> dict[str, Any]:
    """Return the counts and the win rates of the records of judge_pairs; a pair without a verdict is in no rate."""
    judged = [record for record in records if record["win"] is not None]
    wins = [record["win"] for record in judged]
    found: dict[str, Any] = {
        "responses": len(records),
        "failures": len(records) - len(judged),
        "wins": wins.count(1.0),
        "ties": wins.count(0.5),
        "losses": wins.count(0.0),
        "inconsistent": sum(not record["consistent"] for record in judged),
    }
    longer = [len(record["response"]) - len(record["baseline_response"]) for record in judged]
    rates = {"win_rate": win_rate(wins), "length_controlled_win_rate": length_controlled_win_rate(wins, longer)}
    for name, (value, low, high) in rates.items():
        found |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return found


def _record(other: Row, row: Row, answer: Row, swapped: Row) -> dict[str, Any]:
    """other: the baseline's response. answer: to the question with `row` first."""
    points, reverse = answer["score"], swapped["score"]
    win = consistent = None
    if points is not None and reverse is not None:
        consistent = points + reverse == MAX_SCORE
        win = points / MAX_SCORE if consistent else 0.5
    texts = {"baseline_response": other["response"], "response": row["response"]}
    replies = zip(ANSWERS, [found[key] for found in (answer, swapped) for key in ANSWERS[:2]], strict=True)
    named = {"id": row["id"], "baseline": other["model"], "model": row["model"]}
    return {**named, **texts, "win": win, "consistent": consistent, **dict(replies)}
