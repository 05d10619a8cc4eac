"""The book's spam experiment (chapter 6) with all its evaluations, on the real messages."""

import contextlib
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.baselines import AUTOCAST, book_model, our_model
from benchmarks.harness import Contender, Row, Run
from benchmarks.setting import Setting
from benchmarks.sources import messages_of, stage_params, started, tokenizer_of
from scratchlm.fast.kernels import set_up
from scratchlm.model.config import SizeName
from scratchlm.tasks.spam import finetune_spam
from stages.finetune_spam import Params

if TYPE_CHECKING:
    from llms_from_scratch.ch06 import SpamDataset

EVALUATED = 40  # messages of train and of val: five batches, the book's eval_iter


def params_of(setting: Setting, epochs: float) -> Params:
    return stage_params(Params, setting, finetune_spam={"epochs": epochs}, evaluation={"max_rows": EVALUATED})


def ours(size: SizeName, source: str, vocabulary: str, epochs: float, setting: Setting) -> Run:
    """The work of stages/finetune_spam.py between reading its inputs and writing its outputs.

    Each call trains the same weights further, which costs the same.
    """
    p = params_of(setting, epochs)
    messages, pad_token_id = messages_of(source, vocabulary), tokenizer_of(vocabulary).end_token_id
    backbone = our_model(size)

    def run() -> float:
        with started("finetune_spam") as context:
            set_up(context, p)
            found = finetune_spam(backbone, messages, pad_token_id, p.finetune_spam, p.evaluation, context)
        return found.training.curve[-1]["step"] * p.finetune_spam.batch_size

    return run


def book_datasets(source: str, vocabulary: str) -> "dict[str, SpamDataset]":
    """The same splits as the book's script has them: from CSV files, padded to the longest training message."""
    import pandas as pd
    from llms_from_scratch.ch06 import SpamDataset

    tokenizer = tokenizer_of(vocabulary)
    found: dict[str, SpamDataset] = {}
    with tempfile.TemporaryDirectory(prefix="scratchlm-benchmark-") as folder:
        for split, rows in messages_of(source, vocabulary).splits.items():  # train comes first
            path = Path(folder) / f"{split}.csv"
            pd.DataFrame([{"Label": row["label"], "Text": row["text"]} for row in rows]).to_csv(path, index=False)
            width = found["train"].max_length if found else None
            found[split] = SpamDataset(path, tokenizer, width, tokenizer.end_token_id)
    return found


def book(size: SizeName, source: str, vocabulary: str, epochs: float, steps: int, device: str = "cpu") -> Run:
    """`steps` of the book's steps with its functions, and the same share of its evaluations and accuracies.

    steps: an epoch at most.
    """
    from llms_from_scratch.ch06 import calc_accuracy_loader, train_classifier_simple
    from torch.utils.data import DataLoader, Subset

    training, datasets = params_of(Setting(), epochs).finetune_spam, book_datasets(source, vocabulary)
    loaders: dict[str, Any] = {split: DataLoader(found, training.batch_size) for split, found in datasets.items()}
    steps = min(steps, len(datasets["train"]) // training.batch_size)
    some = Subset(datasets["train"], range(steps * training.batch_size))
    loaders["train"] = DataLoader(some, training.batch_size, shuffle=True, drop_last=True)

    model: Any = book_model(size)
    model.requires_grad_(False)
    model.out_head = torch.nn.Linear(model.out_head.in_features, 2)
    model.trf_blocks[-1].requires_grad_(True)
    model.final_norm.requires_grad_(True)
    model.to(device)

    # batches whose accuracy the whole run computes: some after each epoch, all splits at the end
    evaluated = EVALUATED // training.batch_size
    after_epochs = epochs * 2 * evaluated
    at_the_end = sum(math.ceil(len(found) / training.batch_size) for found in datasets.values())
    share = steps / (epochs * (len(datasets["train"]) // training.batch_size))
    remaining = round(share * (after_epochs + at_the_end)) - 2 * evaluated  # train_classifier_simple does the others

    def run() -> float:
        optimizer = torch.optim.AdamW(model.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay)
        with contextlib.redirect_stdout(None):
            train_classifier_simple(
                model, loaders["train"], loaders["val"], optimizer, device, num_epochs=1,
                eval_freq=training.evaluate_every_steps, eval_iter=evaluated,
            )  # fmt: skip
        calc_accuracy_loader(loaders["test"], model, device, num_batches=max(1, remaining))
        return len(some)

    return run


def spam_row(size: SizeName, source: str, vocabulary: str, epochs: float, steps: int, precision: str) -> Row:
    shape: dict[str, Any] = {"size": size, "source": source, "vocabulary": vocabulary, "epochs": epochs}
    contenders = {
        "scratchlm": Contender(ours, shape | {"setting": Setting(precision)}),
        "llms-from-scratch": Contender(book, shape | {"steps": steps}),
    }
    notes = (
        "Equal: weights, splits of the messages, padding to the longest training message, last position, what trains, "
        "AdamW and its settings, evaluations every 50 steps on 40 messages of train and of val, the accuracy of the "
        "three splits at the end; all of it is in the time. scratchlm: the whole experiment, all epochs, from token "
        "ids to scores, with resume states; the frozen blocks run once for each message, not in every step and "
        "evaluation; an evaluation gives accuracies too, and there is none after an epoch. llms-from-scratch: "
        f"{steps} of the 650 steps, which all cost the same, with train_classifier_simple and calc_accuracy_loader, "
        "the evaluation that belongs to them, and the same share of all batches whose accuracy the whole run takes."
        f"{AUTOCAST if precision == 'bfloat16' else ''}"
    )
    return Row("training messages", contenders, {"llms-from-scratch": 15.0}, notes, repeats=2)


def make_rows(size: SizeName, source: str, vocabulary: str, epochs: float, steps: int) -> dict[str, Row]:
    return {
        f"spam_{precision}": spam_row(size, source, vocabulary, epochs, steps, precision)
        for precision in ("float32", "bfloat16")
    }


ROWS = make_rows("124M", "sms-spam", "gpt2-124M", epochs=5, steps=50)
TINY = make_rows("nano", "sample-messages", "gpt2-nano", epochs=0.1, steps=2)
