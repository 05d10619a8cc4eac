"""Score every response from 0 to 100."""

from pathlib import Path

from scratchlm.judge.agreement import agreement
from scratchlm.judge.pairwise import PAIRWISE_SCHEMA, judge_variants
from scratchlm.judge.protocol import JudgeParams, LanguageModelParams
from scratchlm.judge.scoring import JUDGEMENT_SCHEMA, judge_all, judge_scores
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
    run: Run, *, params: Path, responses: Path, replies: Path, judgements: Path, pairs: Path, metrics: Path,
    scores: Path,
) -> None:  # fmt: skip
    p = read_params(params, Params)
    rows = [row for name in p.variants for row in read_table(responses / f"{name}.parquet")]
    judged, judge, second = judge_all(p.judge, rows, replies)
    found = judge_scores(judged, p.seed)
    check_trust(judged, found)
    compared, rates = judge_variants(p.judge, rows, replies)
    write_table(judgements, judged, JUDGEMENT_SCHEMA)
    write_table(pairs, compared, PAIRWISE_SCHEMA)
    write_csv(scores, [{"model": row["model"], "score": row["score"]} for row in judged])
    trusted = {"trust": trust(judged, found)} if isinstance(p.judge, LanguageModelParams) else {}
    for sentence in [*failures(judged), *(f"trust: {row['verdict']}" for row in trusted.values())]:
        run.say(sentence)
    agreed = {"agreement": agreement(judged) | {"judge": second}} if second else {}
    write_json(metrics, found | {"judge": judge} | trusted | agreed | rates)


if __name__ == "__main__":
    start(main, "base.mean_score", "instruct.mean_score")
