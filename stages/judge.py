"""Score every response from 0 to 100."""

import sys
from pathlib import Path

from scratchlm.judge.protocol import JudgeParams
from scratchlm.judge.scoring import JUDGEMENT_SCHEMA, build_judge, control_records, judge_records, judge_scores
from scratchlm.judge.trust import check_trust, failures
from scratchlm.run.context import Run
from scratchlm.run.files import read_table, write_csv, write_json, write_table
from scratchlm.run.params import Section, Seed, read_params
from scratchlm.run.stage import start


class Params(Section):
    seed: Seed
    judge: JudgeParams


def main(
    run: Run, *, params: Path, responses: Path, replies: Path, judgements: Path, metrics: Path, scores: Path
) -> None:
    p = read_params(params, Params)
    judge = build_judge(p.judge, replies)
    records = read_table(responses)
    records += control_records(records, p.judge.controls)
    judged = list(judge_records(judge, records))
    found = judge_scores(judged, p.seed)
    check_trust(judged, found)
    for sentence in failures(judged):
        print(f"judge: {sentence}", file=sys.stderr)
    write_table(judgements, judged, JUDGEMENT_SCHEMA)
    write_csv(scores, [{"model": row["model"], "score": row["score"]} for row in judged])
    write_json(metrics, found | {"judge": judge.identity})


if __name__ == "__main__":
    start(main)
