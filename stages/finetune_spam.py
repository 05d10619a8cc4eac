"""Finetune a base model into a spam classifier."""

from pathlib import Path

from scratchlm.artifacts import read_splits, write_csv, write_json, write_table
from scratchlm.checkpoints.classifier import save_classifier
from scratchlm.checkpoints.native import load_gpt
from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.entry import run
from scratchlm.evaluation.classification import PREDICTION_SCHEMA, SpamEvaluation, confusion_rows, prediction_rows
from scratchlm.evaluation.settings import EvaluationParams
from scratchlm.model.gpt import parameter_count
from scratchlm.model.lora import adapter_state, merge_lora
from scratchlm.params import read_params
from scratchlm.runtime import RuntimeParams, autocast, set_up
from scratchlm.training.loop import train
from scratchlm.training.spam import FinetuneSpamParams, build_spam_classifier, padded_width, spam_task


class Params(RuntimeParams):
    finetune_spam: FinetuneSpamParams
    evaluation: EvaluationParams


def main(
    params: Path, tokenizer: Path, messages: Path, base: Path, model: Path, predictions: Path,
    metrics: Path, curve: Path, confusion: Path, log: Path,
) -> None:  # fmt: skip
    p = read_params(params, Params)
    device = set_up(p)
    splits = read_splits(messages)
    trunk = load_gpt(base, dropout=p.finetune_spam.dropout)
    pad_token_id = load_tokenizer(tokenizer).end_token_id
    texts = [row["token_ids"] for row in splits["train"]]
    width = padded_width(p.finetune_spam.padding, texts, trunk.config.context_length)
    classifier = build_spam_classifier(trunk, p.finetune_spam, p.seed).to(device)
    evaluation = SpamEvaluation(splits, pad_token_id, width, p.evaluation)
    task = spam_task(splits["train"], width, pad_token_id, lambda: evaluation.quick(classifier))
    n_trainable = parameter_count(classifier, trainable_only=True)
    rows = train(classifier, task, p.finetune_spam, p, device, log)
    adapter = adapter_state(classifier)
    merge_lora(classifier)
    with autocast(p, device):
        scores, probabilities = evaluation.full(classifier)
    found = prediction_rows(splits["test"], probabilities["test"])
    write_table(predictions, found, PREDICTION_SCHEMA)
    write_csv(confusion, confusion_rows(found))
    write_csv(curve, rows)
    write_json(metrics, scores | {"padded_tokens": width, "trainable_parameters": n_trainable})
    save_classifier(model, classifier, adapter, padded_tokens=width)


if __name__ == "__main__":
    run(main)
