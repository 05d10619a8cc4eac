"""Pretraining: next-token prediction on sliding windows of a corpus. The book's chapter 5."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from pydantic import Field

from scratchlm.arithmetic.random import stream
from scratchlm.data.tokenizer import Tokenizer
from scratchlm.data.windows import Corpus, TokenWindows
from scratchlm.fast.decoding import for_inference
from scratchlm.model.config import GPTConfig
from scratchlm.model.generate import GREEDY, Stopping, Temperature, generate
from scratchlm.model.gpt import GPTModel, build_model, parameter_count
from scratchlm.run.context import Run
from scratchlm.run.errors import UserError
from scratchlm.tasks.language_model import Losses, LossMeter, bits_per_byte, example_id, loss_rows, perplexity
from scratchlm.tasks.settings import EvaluationParams, evenly_spaced
from scratchlm.training.loop import Batch, Metrics, Task, Training, no_sample, train
from scratchlm.training.losses import static_next_token_loss, summed_window_loss
from scratchlm.training.optimizer import TrainingParams


class PretrainParams(TrainingParams):
    """stride: tokens from one window's start to the next. sample_*: the text written at each evaluation."""

    stride: Annotated[int, Field(ge=1)]
    sample_prompt: Annotated[str, Field(min_length=1)]
    sample_tokens: Annotated[int, Field(ge=1, le=100_000)]
    sample_temperature: Temperature


Sample = Callable[[GPTModel], Mapping[str, Any]]


class PretrainResult(NamedTuple):
    """The trained model, its curve and samples, and what was measured.

    losses: of each val window, rows of LOSS_SCHEMA. metrics: by split, and two numbers.
    """

    model: GPTModel
    training: Training
    losses: list[dict[str, object]]
    metrics: dict[str, Any]


def pretrain_gpt(
    corpus: Corpus, config: GPTConfig, params: PretrainParams, evaluation_params: EvaluationParams, run: Run,
    sample: Sample = no_sample,
) -> PretrainResult:  # fmt: skip
    """Train a model of this configuration from random weights, and measure it."""
    gpt = build_model(config, stream(run.seed, "initialisation")).to(run.device)
    windows = corpus.windows("train", config.context_length, params.stride)
    evaluation = CorpusEvaluation(corpus, evaluation_params)
    with run.autocast():
        untrained = evaluation.full(gpt, "val")
    training = train(gpt, pretraining_task(windows, params, evaluation.evaluate, sample), run)
    with run.autocast():
        measured = {split: evaluation.full(gpt, split) for split in ("train", "val")}
    scores = {split: evaluation.metrics(found, split) for split, found in measured.items()}
    others = {"parameters": parameter_count(gpt), "untrained_val_loss": untrained.mean}
    return PretrainResult(gpt, training, loss_rows(evaluation.val_ids(), measured["val"]), scores | others)


def pretraining_task(
    windows: TokenWindows,
    params: TrainingParams,
    evaluate: Callable[[GPTModel], Metrics],
    sample: Sample = no_sample,
) -> Task:
    """The loop's task for windows of (B, T) inputs and targets."""

    def batch(indices: np.ndarray) -> Batch:
        inputs, targets = (torch.from_numpy(part) for part in windows.batch(indices))
        return Batch((inputs, targets), targets.numel())

    return Task("pretrain", params, len(windows), batch, summed_window_loss, evaluate, sample, static_next_token_loss)


def text_sampler(tokenizer: Tokenizer, params: PretrainParams, seed: int) -> Sample:
    """Return a function that continues the prompt of params.yaml, with the same draws at each call: model -> text.

    Raises UserError if the prompt has no tokens.
    """
    prompt = tokenizer.encode(params.sample_prompt)
    if not prompt:
        raise UserError(f"pretrain.sample_prompt {params.sample_prompt!r} has no tokens; use at least one word")
    stopping = Stopping(params.sample_tokens, tokenizer.end_token_id)
    sampling = GREEDY.model_copy(update={"temperature": params.sample_temperature})
    seeds = [stream(seed, "sampling text")]

    def sample(model: GPTModel) -> dict[str, str]:
        (continued,) = generate(for_inference(model), [tokenizer.begin_ids + prompt], stopping, sampling, seeds)
        return {"text": tokenizer.decode([*prompt, *continued.token_ids])}

    return sample


class CorpusEvaluation:
    """Loss on the corpus over windows that do not overlap; as many windows of train as there are of val."""

    def __init__(self, corpus: Corpus, params: EvaluationParams) -> None:
        self._corpus, self._params, self._meter = corpus, params, LossMeter()

    def evaluate(self, model: GPTModel) -> dict[str, float]:
        """train_loss and val_loss on at most max_rows windows of each: the same ones at each call."""
        return {f"{split}_loss": self._measure(model, split, self._params.max_rows).mean for split in ("train", "val")}

    def full(self, model: GPTModel, split: str) -> Losses:
        """The losses of every val window, or of as many of train."""
        return self._measure(model, split, len(self._windows("val")))

    def metrics(self, losses: Losses, split: str) -> dict[str, float]:
        """loss (nats per token), perplexity and bits per byte of a split."""
        counts = self._corpus.counts[split]
        return {
            "loss": losses.mean,
            "perplexity": perplexity(losses.mean),
            "bits_per_byte": bits_per_byte(losses.mean, counts["tokens"], counts["bytes"]),
        }

    def val_ids(self) -> list[str]:
        """The id of every val window: its number, and a hash of the tokens that are predicted in it."""
        windows = self._windows("val")
        targets = (windows.batch(np.array([i]))[1] for i in range(len(windows)))
        return [example_id(f"val-{i:05d}", tokens.tobytes()) for i, tokens in enumerate(targets)]

    def _windows(self, split: str) -> TokenWindows:
        length = self._params.context_length
        return self._corpus.windows(split, length, length)

    def _measure(self, model: GPTModel, split: str, at_most: int) -> Losses:
        windows = self._windows(split)
        return self._meter.measure(model, windows.batch, evenly_spaced(len(windows), at_most), self._params.batch_size)
