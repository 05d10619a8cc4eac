"""Instruction finetuning (the book's chapter 7) with its evaluations, on the real instructions."""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from benchmarks.baselines import AUTOCAST, UNTIED, book_model, huggingface_loss, huggingface_model, our_model
from benchmarks.harness import Contender, Row, Run
from benchmarks.setting import Setting
from benchmarks.sources import instruction_splits, stage_params, started, tokenizer_of
from scratchlm.data.tokenizer import IGNORE_INDEX
from scratchlm.fast.kernels import set_up
from scratchlm.model.config import GPT2_CONTEXT_LENGTH, SizeName
from scratchlm.tasks.generation import Rows
from scratchlm.tasks.instruct import Instructions, ResponseEvaluation, instruct_task
from scratchlm.tasks.settings import evenly_spaced
from scratchlm.training.loop import no_sample, train
from scratchlm.training.order import batch_indices
from stages.finetune_instruct import Params

EVALUATED = 40  # examples of train and of val: five batches, the book's eval_iter
EVERY_STEPS = 5  # the book's eval_freq
Example = list[int]  # prompt and response


def params_of(setting: Setting) -> Params:
    return stage_params(
        Params, setting, finetune_instruct={"evaluate_every_steps": EVERY_STEPS}, evaluation={"max_rows": EVALUATED}
    )


def ours(size: SizeName, source: str, vocabulary: str, steps: int | None, setting: Setting) -> Run:
    """The training that stages/finetune_instruct.py runs, ended after `steps`, if that is given."""
    p, splits, text = params_of(setting), instruction_splits(source, vocabulary), tokenizer_of(vocabulary)
    params, per_epoch = p.finetune_instruct, len(splits["train"]) // p.finetune_instruct.batch_size
    if steps is not None:
        params = params.model_copy(update={"epochs": (steps + 0.5) / per_epoch})
    gpt = our_model(size).to(setting.device)
    instructions = Instructions(splits, text, gpt.config.context_length)
    task = instruct_task(instructions, params, ResponseEvaluation(instructions, p.evaluation))

    def run() -> float:
        with started("finetune_instruct") as context:
            set_up(context, p)
            curve = train(gpt, task._replace(sample=no_sample), context).curve
        return curve[-1]["step"] * params.batch_size

    return run


def examples(source: str, vocabulary: str, steps: int) -> dict[str, list[Example]]:
    """The baselines' data: `train`, the examples of the first steps in our order, and `val`, those that are evaluated.

    `evaluated` are those of train that we evaluate; the book takes the first ones of `train`.
    """
    p, splits = params_of(Setting()), instruction_splits(source, vocabulary)
    n, size = len(splits["train"]), p.finetune_instruct.batch_size
    train = [int(i) for step in range(steps) for i in batch_indices(step, n, size, p.seed)]
    return {
        "train": tokens_of(splits["train"], train),
        "evaluated": tokens_of(splits["train"], evenly_spaced(n, EVALUATED)),
        "val": tokens_of(splits["val"], evenly_spaced(len(splits["val"]), EVALUATED)),
    }


def tokens_of(rows: Rows, chosen: Iterable[int]) -> list[Example]:
    return [[*rows[i]["prompt_token_ids"], *rows[i]["response_token_ids"]] for i in chosen]


def loaders_of(
    found: Mapping[str, list[Example]], batch_size: int, collate: Callable[..., Any]
) -> dict[str, DataLoader[Any]]:
    return {
        name: DataLoader(some, batch_size, collate_fn=collate)  # type: ignore[arg-type]
        for name, some in found.items()
    }


def book(size: SizeName, source: str, vocabulary: str, steps: int, device: str = "cpu") -> Run:
    """One step more than the others: it evaluates after the first of each five steps, so the evaluations match."""
    from llms_from_scratch import ch05
    from llms_from_scratch.ch07 import custom_collate_fn

    params, text = params_of(Setting()).finetune_instruct, tokenizer_of(vocabulary)
    found = examples(source, vocabulary, steps + 1)
    collate = partial(
        custom_collate_fn, pad_token_id=text.end_token_id, allowed_max_length=GPT2_CONTEXT_LENGTH, device=device
    )
    loaders = loaders_of(found, params.batch_size, collate)
    model = book_model(size).to(device)

    def run() -> float:
        optimizer = torch.optim.AdamW(model.parameters(), lr=params.learning_rate, weight_decay=params.weight_decay)
        with contextlib.redirect_stdout(None), mock.patch.object(ch05, "generate_and_print_sample"):
            ch05.train_model_simple(
                model, loaders["train"], loaders["val"], optimizer, device, num_epochs=1, eval_freq=EVERY_STEPS,
                eval_iter=EVALUATED // params.batch_size, start_context="", tokenizer=None,
            )  # fmt: skip
        return len(found["train"])

    return run


def padded(batch: Sequence[Example], end_token_id: int) -> dict[str, Tensor]:
    """Pad to the longest of the batch, as transformers' collators do. The model shifts the labels itself."""
    sequences = [torch.tensor([*example, end_token_id]) for example in batch]
    return {
        "input_ids": pad_sequence(sequences, batch_first=True, padding_value=end_token_id),
        "attention_mask": pad_sequence([torch.ones_like(sequence) for sequence in sequences], batch_first=True),
        "labels": pad_sequence(sequences, batch_first=True, padding_value=IGNORE_INDEX),
    }


def huggingface(size: SizeName, source: str, vocabulary: str, steps: int, precision: str) -> Run:
    params, text = params_of(Setting(precision)).finetune_instruct, tokenizer_of(vocabulary)
    found, collate = examples(source, vocabulary, steps), partial(padded, end_token_id=text.end_token_id)
    loaders = loaders_of(found, params.batch_size, collate)
    model = huggingface_model(size)

    def evaluate() -> None:
        model.eval()
        with torch.no_grad():
            for split in ("evaluated", "val"):
                sum(huggingface_loss(model, precision, **batch).item() for batch in loaders[split])
        model.train()

    def run() -> float:
        optimizer = torch.optim.AdamW(model.parameters(), lr=params.learning_rate, weight_decay=params.weight_decay)
        for step, batch in enumerate(loaders["train"]):
            if step % EVERY_STEPS == 0:
                evaluate()
            optimizer.zero_grad()
            huggingface_loss(model, precision, **batch).backward()
            optimizer.step()
        evaluate()
        return len(found["train"])

    return run


def instruct_row(size: SizeName, source: str, vocabulary: str, steps: int, precision: str) -> Row:
    shape: dict[str, Any] = {"size": size, "source": source, "vocabulary": vocabulary, "steps": steps}
    contenders = {
        "scratchlm": Contender(ours, shape | {"setting": Setting(precision)}),
        "transformers": Contender(huggingface, shape | {"precision": precision}),
        "llms-from-scratch": Contender(book, shape),
    }
    notes = (
        f"{steps} of the 232 steps of two epochs, with an evaluation before every "
        f"{EVERY_STEPS} and at the end; llms-from-scratch, which evaluates after the first of {EVERY_STEPS}, does one "
        "step more and so as many evaluations. Equal: weights, examples as token ids, their order, batches of 8 padded "
        "to their longest, the loss over prompt and response, AdamW and its settings, evaluations on 40 examples of "
        "train and of val, all in the time. scratchlm computes no padding; its evaluation scores responses only, and "
        "the answers that it also writes are left out, as the others write none; no resume state is due so early. "
        "transformers: model(input_ids, attention_mask, labels) in a plain loop. "
        "llms-from-scratch: custom_collate_fn and train_model_simple without its sample after each epoch; its train "
        f"evaluation takes the first batches of train; {UNTIED}{AUTOCAST if precision == 'bfloat16' else ''}"
    )
    targets = {"llms-from-scratch": 3.0, "transformers": 1.5}
    return Row("training examples", contenders, targets, notes, repeats=2)


def make_rows(size: SizeName, source: str, vocabulary: str, steps: int) -> dict[str, Row]:
    return {
        f"instruct_{precision}": instruct_row(size, source, vocabulary, steps, precision)
        for precision in ("float32", "bfloat16")
    }


ROWS = make_rows("124M", "instruction-data", "gpt2-124M", steps=10)
TINY = make_rows("nano", "sample-instructions", "gpt2-nano", steps=1)
