"""Repeat the finetuning of the classifier with a few of its parameters changed."""

from pathlib import Path

from scratchlm.arithmetic.fingerprint import describe_arithmetic
from scratchlm.data.messages import load_messages
from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.fast.kernels import set_up
from scratchlm.formats.native import load_gpt
from scratchlm.run.context import Run
from scratchlm.run.device import RuntimeParams
from scratchlm.run.files import write_json, write_table
from scratchlm.run.params import Runs, read_params
from scratchlm.run.stage import start
from scratchlm.tasks.scores import PREDICTION_SCHEMA, prediction_rows
from scratchlm.tasks.settings import EvaluationParams
from scratchlm.tasks.spam import FinetuneSpamParams, finetune_spam, varied


class Params(RuntimeParams):
    finetune_spam: FinetuneSpamParams
    evaluation: EvaluationParams
    spam_ablations: Runs


def main(
    run: Run, *, params: Path, tokenizer: Path, messages: Path, base: Path, predictions: Path, metrics: Path
) -> None:
    p = read_params(params, Params)
    set_up(run, p)
    variant = varied(p.finetune_spam, p.spam_ablations, metrics.stem)
    given, pad_token_id = load_messages(messages), load_tokenizer(tokenizer).end_token_id
    backbone = load_gpt(base, dropout=variant.dropout)
    result = finetune_spam(backbone, given, pad_token_id, variant, p.evaluation, run)
    rows = prediction_rows(given.splits["test"], result.probabilities["test"], given.classes)
    write_table(predictions, rows, PREDICTION_SCHEMA)
    write_json(metrics, result.metrics | describe_arithmetic(run.device))


if __name__ == "__main__":
    start(main, "test.accuracy")
