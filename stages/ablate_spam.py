"""Repeat the spam experiment with a few of its parameters changed."""

from pathlib import Path

from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.formats.native import load_gpt
from scratchlm.run.device import RuntimeParams
from scratchlm.run.files import read_splits, write_json, write_table
from scratchlm.run.params import read_params
from scratchlm.run.resume import Resume
from scratchlm.run.stage import run
from scratchlm.tasks.classification import PREDICTION_SCHEMA, prediction_rows
from scratchlm.tasks.settings import EvaluationParams
from scratchlm.tasks.spam import FinetuneSpamParams, SpamAblations, varied
from scratchlm.tasks.spam_experiment import run_spam_experiment


class Params(RuntimeParams):
    finetune_spam: FinetuneSpamParams
    evaluation: EvaluationParams
    spam_ablations: SpamAblations


def main(
    params: Path,
    tokenizer: Path,
    messages: Path,
    base: Path,
    predictions: Path,
    metrics: Path,
    log: Path,
    resume: Resume,
) -> None:
    p = read_params(params, Params)
    variant = varied(p.finetune_spam, p.spam_ablations, metrics.stem)
    splits, pad_token_id = read_splits(messages), load_tokenizer(tokenizer).end_token_id
    trunk = load_gpt(base, dropout=variant.dropout)
    found = run_spam_experiment(trunk, splits, pad_token_id, variant, p.evaluation, p, log, resume)
    write_table(predictions, prediction_rows(splits["test"], found.probabilities["test"]), PREDICTION_SCHEMA)
    write_json(metrics, found.scores)


if __name__ == "__main__":
    run(main)
