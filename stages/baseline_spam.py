"""Classify the messages by their words alone, and say how much better the finetuned model is."""

from pathlib import Path

from scratchlm.data.messages import load_messages
from scratchlm.run.context import Run
from scratchlm.run.files import read_table, write_json, write_table
from scratchlm.run.stage import start
from scratchlm.tasks.bag_of_words import bag_of_words
from scratchlm.tasks.scores import PREDICTION_SCHEMA, accuracy_difference, prediction_rows


def main(run: Run, *, messages: Path, finetuned: Path, predictions: Path, metrics: Path) -> None:
    given = load_messages(messages)
    baseline = bag_of_words(given)
    rows = prediction_rows(given.splits["test"], baseline.probabilities["test"], given.classes)
    write_table(predictions, rows, PREDICTION_SCHEMA)
    gain = accuracy_difference(read_table(finetuned, PREDICTION_SCHEMA), rows)
    write_json(metrics, baseline.metrics | {"gain_of_finetune_spam": gain})


if __name__ == "__main__":
    start(main, "test.accuracy")
