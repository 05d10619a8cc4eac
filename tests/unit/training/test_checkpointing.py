"""Activations computed a second time: the same bits, and less to keep."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from scratchlm.arithmetic.mode import use_exact
from scratchlm.arithmetic.random import drawing_from
from scratchlm.data.windows import TokenWindows
from scratchlm.fast.varlen import VarlenLayout, varlen_states
from scratchlm.model.classifier import GPTClassifier, freeze
from scratchlm.model.gpt import GPTModel
from scratchlm.model.lora import LoRAParams, apply_lora
from scratchlm.run.context import Run
from scratchlm.tasks.instruct import FinetuneInstructParams, Instructions, instruct_task
from scratchlm.tasks.pretraining import pretraining_task
from scratchlm.tasks.spam import padded_texts, spam_task
from scratchlm.training.loop import Task, no_sample, train
from scratchlm.training.optimizer import TrainingParams

LLAMA = {
    "position": "rope", "norm": "rms", "feed_forward": "swiglu", "bias": False, "qkv_bias": False, "n_kv_heads": 1,
}  # fmt: skip
EVALUATION: Any = SimpleNamespace(evaluate=lambda model: {"loss": 0.0}, sample=no_sample)


def windows(model: GPTModel, params: TrainingParams) -> tuple[Any, Task]:
    return model, pretraining_task(TokenWindows(np.arange(60) % 11, 6, 4), params, EVALUATION.evaluate)


def textbook(model: GPTModel, params: TrainingParams) -> tuple[Any, Task]:
    """Windows through GPTModel.hidden_states, whichever way the task takes."""

    def loss(model: GPTModel, inputs: Tensor, targets: Tensor) -> Tensor:
        return model.head(model.hidden_states(inputs)).square().sum()

    return model, windows(model, params)[1]._replace(loss=loss)


def responses(model: GPTModel, params: TrainingParams) -> tuple[Any, Task]:
    """Rows of different lengths, and LoRA."""
    rows = [
        {"prompt_token_ids": [1 + i % 3] * (1 + i % 2), "response_token_ids": [(i + j) % 11 for j in range(1 + i % 5)]}
        for i in range(12)
    ]
    tokenizer: Any = SimpleNamespace(end_token_id=0)
    p = FinetuneInstructParams(**params.model_dump(), base="x", mask_instruction=True, dropout=0.0, lora=None)
    apply_lora(model, LoRAParams(rank=2, alpha=2.0, layers="blocks"), seed=3)
    return model, instruct_task(Instructions({"train": rows}, tokenizer, 8), p, EVALUATION)


def messages(model: GPTModel, params: TrainingParams) -> tuple[Any, Task]:
    """A classifier whose first block is frozen."""
    with drawing_from(4):
        classifier = GPTClassifier(model, 2, "last_real")
    freeze(classifier, "last_two_blocks")
    rows = [[(3 * i + j) % 11 for j in range(1 + i % 7)] for i in range(12)]
    return classifier, spam_task(padded_texts(rows, 0, 8), np.arange(12) % 2, params, EVALUATION)


@pytest.mark.long
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "exact"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("shape", [{}, LLAMA], ids=["gpt2", "llama"])
@pytest.mark.parametrize("experiment", [windows, textbook, responses, messages])
def test_weights_curve_and_random_streams_are_the_same_to_the_bit(
    tiny_gpt: Any, training_values: dict[str, Any], experiment: Callable[..., Any], shape: Any, dropout: float,
    precision: str,
) -> None:  # fmt: skip
    use_exact(precision == "exact")
    computed, results = [], []
    for checkpoint in (False, True):
        params = TrainingParams(
            **training_values | {"checkpoint_activations": checkpoint, "max_micro_batch_size": 2, "epochs": 2.0}
        )
        model, task = experiment(tiny_gpt(n_layers=3, dropout=dropout, **shape), params)
        calls: list[bool] = []
        backbone = getattr(model, "backbone", model)
        backbone.blocks[1].norm2.register_forward_hook(lambda *_, calls=calls: calls.append(True))
        curve = train(model, task, Run(seed=7, precision=precision)).curve
        state = {name: value.numpy().tobytes() for name, value in model.state_dict().items()}
        results.append((curve, torch.get_rng_state().tolist(), state))
        computed.append(len(calls))
    assert results[0][:2] == results[1][:2]
    assert [name for name, value in results[0][2].items() if results[1][2][name] != value] == []
    assert computed[1] == 2 * computed[0] > 0


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_only_the_input_of_each_block_is_kept(tiny_gpt: Any, dropout: float) -> None:
    layout = VarlenLayout(torch.tensor([5, 2]))
    token_ids = torch.arange(7)
    kept: dict[bool, list[Tensor]] = {False: [], True: []}
    for checkpoint, tensors in kept.items():
        model = tiny_gpt(n_layers=3, dropout=dropout)
        model.checkpoint_activations = checkpoint
        with saved_tensors_hooks(lambda tensor, into=tensors: into.append(tensor), lambda _: None):
            varlen_states(model, token_ids, layout)
            model.hidden_states(token_ids[None])
    assert len(kept[False]) > 3 * 2 * 10
    found = [tensor for tensor in kept[True] if tensor.is_floating_point() and tensor.numel() == 7 * 8]
    # of each pass: the input of each block and of the final norm, and the embedding's dropout
    assert len(found) == 2 * (3 + 1 + (dropout > 0))


def test_nothing_is_recomputed_without_gradients_or_without_the_parameter(
    tiny_gpt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("scratchlm.model.gpt.checkpointed", never)
    model = tiny_gpt()
    model.hidden_states(torch.arange(4)[None]).sum().backward()
    model.checkpoint_activations = True
    with torch.no_grad():
        model.hidden_states(torch.arange(4)[None])
    with pytest.raises(AssertionError):
        model.hidden_states(torch.arange(4)[None])


@pytest.mark.long
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_compiler_finds_one_graph(tiny_gpt: Any, dropout: float) -> None:
    model = tiny_gpt(dropout=dropout)
    model.checkpoint_activations = True
    compiled = torch.compile(model.hidden_states, fullgraph=True, backend="aot_eager")
    compiled(torch.arange(8)[None]).sum().backward()
    assert all(weight.grad is not None for weight in model.blocks.parameters())
