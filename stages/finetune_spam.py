"""Finetune a base model into a spam classifier."""

from pathlib import Path

from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.formats.classifier import save_classifier
from scratchlm.formats.native import load_gpt
from scratchlm.run.device import RuntimeParams
from scratchlm.run.files import read_splits, write_csv, write_json, write_table
from scratchlm.run.params import read_params
from scratchlm.run.resume import Resume
from scratchlm.run.stage import run
from scratchlm.tasks.classification import PREDICTION_SCHEMA, confusion_rows, prediction_rows
from scratchlm.tasks.settings import EvaluationParams
from scratchlm.tasks.spam import FinetuneSpamParams
from scratchlm.tasks.spam_experiment import run_spam_experiment


class Params(RuntimeParams):
    finetune_spam: FinetuneSpamParams
    evaluation: EvaluationParams


def main(
    params: Path, tokenizer: Path, messages: Path, base: Path, model: Path, predictions: Path,
    metrics: Path, curve: Path, confusion: Path, log: Path, resume: Resume,
) -> None:  # fmt: skip
    p = read_params(params, Params)
    splits, pad_token_id = read_splits(messages), load_tokenizer(tokenizer).end_token_id
    trunk = load_gpt(base, dropout=p.finetune_spam.dropout)
    found = run_spam_experiment(trunk, splits, pad_token_id, p.finetune_spam, p.evaluation, p, log, resume)
    rows = prediction_rows(splits["test"], found.probabilities["test"])
    write_table(predictions, rows, PREDICTION_SCHEMA)
    write_csv(confusion, confusion_rows(rows))
    write_csv(curve, found.curve)
    write_json(metrics, found.scores)
    save_classifier(model, found.classifier, found.adapter, padded_tokens=found.scores["padded_tokens"])


if __name__ == "__main__":
    run(main)
