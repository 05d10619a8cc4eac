"""Pretraining steps on the shapes of GPT-2 and SmolLM2: forward, backward, optimizer, with windows of random tokens."""

from typing import Any, NamedTuple

import torch

from benchmarks.baselines import (
    AUTOCAST,
    SEED,
    UNTIED,
    ShapeName,
    book_model,
    book_settings,
    huggingface_loss,
    huggingface_model,
    our_config,
)
from benchmarks.harness import Contender, Row, Run
from benchmarks.setting import Setting
from scratchlm.data.windows import TokenWindows
from scratchlm.model.config import GPT2_VOCAB_SIZE, GPTConfig, SizeName
from scratchlm.model.gpt import build_model
from scratchlm.tasks.pretraining import pretraining_task
from scratchlm.training.loop import TrainingState, optimizer_step
from scratchlm.training.optimizer import TrainingParams

LEARNING_RATE = 4e-4  # the book's, like the optimizer settings below
PADDED_VOCAB_SIZE = 50304  # of the book's recipe for a GPU: a multiple of 64, which suits tensor cores
NOTES = (
    "Equal: weights, shape of the batch, AdamW, float32 master weights, dropout 0, the loss over every token. "
    "scratchlm: the step of its own training loop, batches from its windows, deterministic kernels. "
    "transformers: model(labels=...), AdamW with torch's defaults."
)
BOOK_NOTES = f" llms-from-scratch: GPTModel, calc_loss_batch and AdamW as chapter 5 has them; {UNTIED}"


class Steps(NamedTuple):
    """Optimizer steps of `batch_size` windows of `window` tokens."""

    batch_size: int
    window: int
    steps: int
    precision: str = "float32"
    device: str = "cpu"
    compiled: bool = False  # scratchlm's own

    @property
    def setting(self) -> Setting:
        return Setting(self.precision, self.device, self.compiled)

    @property
    def n_tokens(self) -> int:
        return self.steps * self.batch_size * self.window


def ours(size: ShapeName, work: Steps, micro_batch_size: int) -> Run:
    return training_steps(our_config(size), work, micro_batch_size)


def training_steps(config: GPTConfig, work: Steps, micro_batch_size: int) -> Run:
    """The steps that stages/pretrain.py runs between two evaluations."""
    batch_size, window = work.batch_size, work.window
    params = TrainingParams(
        epochs=1.0, batch_size=batch_size, max_micro_batch_size=micro_batch_size, learning_rate=LEARNING_RATE,
        min_learning_rate=0.0, schedule="constant", warmup_steps=0, weight_decay=0.1, weight_decay_on="all",
        beta1=0.9, beta2=0.999, max_grad_norm=None, evaluate_every_steps=1, checkpoint_activations=False,
    )  # fmt: skip
    context = work.setting.start()
    model = build_model(config, SEED).to(context.device).train()
    tokens = torch.randint(config.vocab_size, (8 * batch_size * window + 1,)).numpy()
    task = pretraining_task(TokenWindows(tokens, window, window), params, lambda model: {})
    state = TrainingState(model, task, context)

    def run() -> float:
        return sum(optimizer_step(state) for _ in range(work.steps))

    return run


def book(size: SizeName, work: Steps) -> Run:
    model = book_model(size).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
    return book_steps(model, optimizer, work)


def book_steps(model: Any, optimizer: torch.optim.Optimizer, work: Steps) -> Run:
    """The body of train_model_simple, which computes the loss of each batch of tokens with its next ones."""
    from llms_from_scratch.ch05 import calc_loss_batch

    shape = (2, work.batch_size, work.window)
    inputs, targets = torch.randint(GPT2_VOCAB_SIZE, shape, device=work.device)

    def run() -> float:
        for _ in range(work.steps):
            optimizer.zero_grad()
            calc_loss_batch(inputs, targets, model, work.device).backward()
            optimizer.step()
        return work.n_tokens

    return run


def book_recipe(size: SizeName, work: Steps, compiler: str) -> Run:
    """The training step of 01_opt_single_gpu.py in the book's chapter 5 (10_llm-training-speed).

    The original also allows TF32, which affects nothing here: no product is in float32.
    """
    from llms_from_scratch.ch04 import GPTModelFast

    model: Any = GPTModelFast(book_settings(our_config(size), PADDED_VOCAB_SIZE))
    model = torch.compile(model.to(work.device, torch.bfloat16).train(), backend=compiler)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1, fused=True)
    return book_steps(model, optimizer, work)


def huggingface(size: ShapeName, work: Steps, fused: bool | None = None, compiler: str | None = None) -> Run:
    """fused: AdamW's option, None for torch's default. compiler: a backend of torch.compile."""
    model = huggingface_model(size).to(work.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=fused)
    inputs = torch.randint(model.config.vocab_size, (work.batch_size, work.window), device=work.device)
    called = model if compiler is None else torch.compile(model, backend=compiler)

    def run() -> float:
        for _ in range(work.steps):
            optimizer.zero_grad()
            huggingface_loss(called, work.precision, input_ids=inputs, labels=inputs).backward()
            optimizer.step()
        return work.n_tokens

    return run


def windows_row(size: ShapeName, work: Steps, targets: dict[str, float], notes: str, repeats: int) -> Row:
    """Ours takes the windows two at a time. The book's package is measured where it has a target."""
    options: dict[str, Any] = {"size": size, "work": work}
    contenders = {
        "scratchlm": Contender(ours, options | {"micro_batch_size": 2}),
        "transformers": Contender(huggingface, options),
    }
    if "llms-from-scratch" in targets:
        contenders["llms-from-scratch"] = Contender(book, options)
    return Row("tokens", contenders, targets, NOTES + notes, repeats)


def make_rows(size: SizeName, llama: ShapeName, short: int, long: int, steps: int) -> dict[str, Row]:
    """Batches of two windows, as the book trains on a laptop, and of eight that fill the context.

    The book's package has no model built like Llama.
    """
    at_once = f" scratchlm's loop takes the 8 windows of {long} tokens 2 at a time, transformers all at once."
    precisions = (("float32", 1.5, ""), ("bfloat16", 2.5, AUTOCAST))  # with the target against the book
    rows = {}
    for precision, target, notes in precisions:
        targets = {"llms-from-scratch": target, "transformers": 1.3}
        work = Steps(2, short, steps, precision)
        rows[f"pretrain_{precision}"] = windows_row(size, work, targets, BOOK_NOTES + notes, 5)
    for precision, _, _ in precisions:
        work = Steps(8, long, 1, precision)
        rows[f"pretrain_1024_{precision}"] = windows_row(size, work, {"transformers": 1.2}, at_once, 3)
    for precision, _, notes in precisions:
        work = Steps(2, short, steps, precision)
        rows[f"pretrain_smollm2_{precision}"] = windows_row(llama, work, {"transformers": 1.3}, notes, 5)
    return rows


ROWS = make_rows("124M", "smollm2-135m", short=256, long=1024, steps=2)
TINY = make_rows("nano", "tiny-llama", short=8, long=16, steps=1)
