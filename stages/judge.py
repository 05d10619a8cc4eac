"""Score every response from 0 to 100."""

import sys
from pathlib import Path

from scratchlm.judge.agreement import agreement
from scratchlm.judge.protocol import JudgeParams, LanguageModelParams
from scratchlm.judge.scoring import (
    JUDGEMENT_SCHEMA,
    build_judge,
    judge_records,
    judge_scores,
    second_params,
    second_records,
    trial_records,
)
from scratchlm.judge.trust import check_trust, failures, trust
from scratchlm.run.context import Run
from scratchlm.run.files import read_table, write_csv, write_json, write_table
from scratchlm.run.params import Section, Seed, read_params
from scratchlm.run.stage import start
from scratchlm.tasks.variants import Variants


class Params(Section):
    seed: Seed
    variants: Variants
    judge: JudgeParams


def main(
    run: Run, *, params: Path, responses: Path, replies: Path, judgements: Path, metrics: Path, scores: Path
) -> None:
    p = read_params(params, Params)
    judge, second = build_judge(p.judge, replies), second_params(p.judge)
    second_judge = build_judge(second, replies) if second else None
    records = [record for name in p.variants for record in read_table(responses / f"{name}.parquet")]
    records += trial_records(records, p.judge)
    judged = list(judge_records(judge, records))
    if second_judge:
        judged += judge_records(second_judge, second_records(records))
    found = judge_scores(judged, p.seed)
    check_trust(judged, found)
    write_table(judgements, judged, JUDGEMENT_SCHEMA)
    write_csv(scores, [{"model": row["model"], "score": row["score"]} for row in judged])
    if second_judge:
        found["agreement"] = agreement(judged) | {"judge": second_judge.identity}
    trusted = {"trust": trust(judged, found)} if isinstance(p.judge, LanguageModelParams) else {}
    for sentence in [*failures(judged), *(f"trust: {row['verdict']}" for row in trusted.values())]:
        print(f"judge: {sentence}", file=sys.stderr)
    write_json(metrics, found | {"judge": judge.identity} | trusted)


if __name__ == "__main__":
    start(main)
