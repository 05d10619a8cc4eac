"""Finetune a base model into a classifier of messages, such as of spam."""

from pathlib import Path

from scratchlm.arithmetic.fingerprint import describe_arithmetic
from scratchlm.data.messages import load_messages
from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.fast.kernels import set_up
from scratchlm.formats.classifier import save_classifier
from scratchlm.formats.native import load_gpt
from scratchlm.run.context import Run
from scratchlm.run.device import RuntimeParams
from scratchlm.run.files import write_csv, write_json, write_table
from scratchlm.run.params import read_params
from scratchlm.run.stage import start
from scratchlm.tasks import spam
from scratchlm.tasks.scores import PREDICTION_SCHEMA, confusion_rows, prediction_rows
from scratchlm.tasks.settings import EvaluationParams


class Params(RuntimeParams):
    finetune_spam: spam.FinetuneSpamParams
    evaluation: EvaluationParams


def main(
    run: Run, *, params: Path, tokenizer: Path, messages: Path, base: Path, model: Path, predictions: Path,
    metrics: Path, curve: Path, steps: Path, confusion: Path,
) -> None:  # fmt: skip
    p = read_params(params, Params)
    set_up(run, p)
    given, pad_token_id = load_messages(messages), load_tokenizer(tokenizer).end_token_id
    backbone = load_gpt(base, dropout=p.finetune_spam.dropout)
    result = spam.finetune_spam(backbone, given, pad_token_id, p.finetune_spam, p.evaluation, run)
    rows = prediction_rows(given.splits["test"], result.probabilities["test"], given.classes)
    write_table(predictions, rows, PREDICTION_SCHEMA)
    write_csv(confusion, confusion_rows(rows))
    write_csv(curve, result.training.curve)
    write_csv(steps, result.training.steps)
    write_json(metrics, result.metrics | describe_arithmetic(run.device))
    padded_tokens = result.metrics["padded_tokens"]
    save_classifier(model, result.classifier, result.adapter, classes=given.classes, padded_tokens=padded_tokens)


if __name__ == "__main__":
    start(main, "test.accuracy", "test.f1")
