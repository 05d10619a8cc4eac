"""Score every response from 0 to 100."""

from pathlib import Path

from scratchlm.artifacts import read_table, write_csv, write_json, write_table
from scratchlm.entry import run
from scratchlm.evaluation.judge import (
    JUDGEMENT_SCHEMA,
    JudgeParams,
    build_judge,
    control_records,
    judge_records,
    judge_scores,
)
from scratchlm.params import Section, Seed, read_params


class Params(Section):
    seed: Seed
    judge: JudgeParams


def main(params: Path, responses: Path, judgements: Path, metrics: Path, scores: Path) -> None:
    p = read_params(params, Params)
    judge = build_judge(p.judge)
    records = read_table(responses)
    judged = judge_records(judge, [*records, *control_records(records, p.judge.controls)])
    write_table(judgements, judged, JUDGEMENT_SCHEMA)
    write_csv(scores, [{"model": row["model"], "score": row["score"]} for row in judged])
    write_json(metrics, judge_scores(judged, p.seed) | {"judge": judge.identity})


if __name__ == "__main__":
    run(main)
