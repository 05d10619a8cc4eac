"""Score every response from 0 to 100."""

from pathlib import Path

from scratchlm.judge.protocol import JudgeParams
from scratchlm.judge.scoring import JUDGEMENT_SCHEMA, build_judge, control_records, judge_records, judge_scores
from scratchlm.run.files import read_table, write_csv, write_json, write_table
from scratchlm.run.params import Section, Seed, read_params
from scratchlm.run.resume import Resume
from scratchlm.run.stage import run


class Params(Section):
    seed: Seed
    judge: JudgeParams


def main(params: Path, responses: Path, judgements: Path, metrics: Path, scores: Path, resume: Resume) -> None:
    p = read_params(params, Params)
    judge = build_judge(p.judge)
    records = read_table(responses)
    records += control_records(records, p.judge.controls)
    resume.only_under(judge.identity)
    judged = resume.records(len(records))
    with resume.keeping_records(judged, JUDGEMENT_SCHEMA) as keep_if_due:
        for row in judge_records(judge, records, len(judged)):
            judged.append(row)
            keep_if_due()
    write_table(judgements, judged, JUDGEMENT_SCHEMA)
    write_csv(scores, [{"model": row["model"], "score": row["score"]} for row in judged])
    write_json(metrics, judge_scores(judged, p.seed) | {"judge": judge.identity})


if __name__ == "__main__":
    run(main)
