"""On a card: the CPU's losses, gradients and tokens; the same bits again and after a resume; no wait, no recompilation.

`make gpu-check` runs the tests marked gpu. On the CPU the others run the same code.
"""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from scratchlm.arithmetic.mode import use_compiler, use_cuda_graphs
from scratchlm.data.windows import TokenWindows
from scratchlm.fast.decoding import for_inference
from scratchlm.fast.kernels import set_up
from scratchlm.model.classifier import GPTClassifier, freeze
from scratchlm.model.config import GPTConfig
from scratchlm.model.generate import Stopping, generate
from scratchlm.model.gpt import GPTModel, build_model
from scratchlm.run.context import Run
from scratchlm.run.device import RuntimeParams
from scratchlm.run.resume import Checkpoint
from scratchlm.tasks.instruct import FinetuneInstructParams, Instructions, instruct_task
from scratchlm.tasks.language_model import LossMeter
from scratchlm.tasks.pretraining import pretraining_task
from scratchlm.tasks.spam import padded_texts
from scratchlm.training.loop import Task, TrainingState, no_sample, optimizer_step, train
from scratchlm.training.losses import next_token_loss
from scratchlm.training.order import batch_indices

CONTEXT, VOCABULARY = 16, 97
MICRO_BATCHES = 2
EPOCHS = 2
STEPS_OF_AN_EPOCH = 12

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
COMPILED = [False, pytest.param(True, marks=pytest.mark.slow)]
on_every_device = pytest.mark.parametrize("device", DEVICES)
compiled_or_not = pytest.mark.parametrize(
    "compiled", COMPILED, ids=lambda compiled: "compiled" if compiled else "plain"
)
TOLERANCES = {"float32": 1e-5, "bfloat16": 0.03}  # of the norm of a difference, as a share of the norm


@pytest.fixture(autouse=True)
def as_before(deterministic_as_before: None) -> Iterator[None]:
    kernels = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    yield
    torch.backends.mkldnn.matmul.fp32_precision = kernels  # type: ignore[attr-defined]
    use_compiler("")
    use_cuda_graphs(False)


def start(device: str, precision: str = "float32", compiled: bool = False, checkpoint: Checkpoint | None = None) -> Run:
    """A run that computes in this way, as a stage starts it."""
    values: dict[str, Any] = {"device": device, "threads": 1, "precision": precision, "seed": 7}
    run = Run("test", checkpoint=checkpoint or Checkpoint())
    set_up(run, RuntimeParams(**values, compile=compiled))
    return run


def gpt(device: str = "cpu", dropout: float = 0.0) -> GPTModel:
    config = GPTConfig(
        vocab_size=VOCABULARY, context_length=CONTEXT, n_layers=2, n_heads=2, emb_dim=32, dropout=dropout,
        qkv_bias=True, tied_head=True, initialisation="gpt2", attention="sdpa",
    )  # fmt: skip
    return build_model(config, seed=1).to(device)


Build = Callable[[dict[str, Any]], Task]


def windows(values: dict[str, Any]) -> Task:
    """Pretraining: every window is full."""
    tokens = np.arange(4 * STEPS_OF_AN_EPOCH * CONTEXT + 1) * 31 % VOCABULARY
    return pretraining_task(TokenWindows(tokens, CONTEXT, CONTEXT), instruct_params(values), first_weight)


def responses(values: dict[str, Any]) -> Task:
    """Instruction finetuning: rows of different lengths."""
    rows = [
        {
            "prompt_token_ids": [1 + i % 50] * (1 + i % 6),
            "response_token_ids": [(i * j + 1) % VOCABULARY for j in range(i % 8)],
        }
        for i in range(4 * STEPS_OF_AN_EPOCH)
    ]
    instructions = Instructions({"train": rows}, SimpleNamespace(end_token_id=0), CONTEXT)  # type: ignore[arg-type]
    evaluation = SimpleNamespace(evaluate=first_weight, sample=no_sample)
    return instruct_task(instructions, instruct_params(values), evaluation)  # type: ignore[arg-type]


def first_weight(model: GPTModel) -> dict[str, float]:
    return {"loss": float(model.token_embedding.weight[0, 0])}


def instruct_params(values: dict[str, Any]) -> FinetuneInstructParams:
    changes = {"epochs": float(EPOCHS), "max_micro_batch_size": 4 // MICRO_BATCHES, "evaluate_every_steps": 5}
    others = {"base": "x", "mask_instruction": True, "dropout": 0.0, "lora": None}
    return FinetuneInstructParams(**values | changes | others)


on_both_tasks = pytest.mark.parametrize("build", [windows, responses])


@on_every_device
@compiled_or_not
@on_both_tasks
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_losses_and_gradients_are_those_of_the_textbook_on_the_cpu(
    training_values: dict[str, Any], device: str, compiled: bool, build: Build, precision: str
) -> None:
    """In float64. The first moment of AdamW after one step is a share of the step's gradient."""
    task, expected = build(training_values | {"max_grad_norm": None}), gpt().double()
    indices = batch_indices(0, task.n_examples, 4, 7)
    inputs, targets = task.batch(indices).tensors
    mean = next_token_loss(expected(inputs), targets)
    mean.backward()

    run, model = start(device, precision, compiled), gpt(device)
    batch = task.batch(indices)
    with torch.no_grad(), run.autocast():
        loss = task.loss(model, *(tensor.to(device) for tensor in batch.tensors)) / batch.n_scored
    assert float(loss) == pytest.approx(float(mean.detach()), rel=TOLERANCES[precision])
    state = TrainingState(model, task, run)
    assert optimizer_step(state) == batch.n_scored
    share = 1 - task.params.beta1
    for (name, ours), textbook in zip(model.named_parameters(), expected.parameters(), strict=True):
        gradient = state.optimizer.state[ours]["exp_avg"].double().cpu() / share
        assert (gradient - textbook.grad).norm() < TOLERANCES[precision] * textbook.grad.norm(), name


@on_every_device
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_captured_evaluations_follow_the_weights(training_values: dict[str, Any], device: str, precision: str) -> None:
    """The loss of rows, and a classifier's logits with and without frozen blocks, before and after a change."""
    run, model, meter = start(device, precision), gpt(device), LossMeter()
    use_cuda_graphs(True)
    classifier = GPTClassifier(gpt(device), 2, "last_real").to(device)
    freeze(classifier, "last_block")
    texts = padded_texts([[1 + (i * j) % 90 for j in range(1 + i)] for i in range(10)], 0, CONTEXT)
    task, chosen = windows(training_values), np.arange(6)
    rows = [tensor.numpy() for tensor in task.batch(chosen).tensors]

    def check() -> None:
        with run.autocast():
            found = meter.measure(model, lambda indices: (rows[0][indices], rows[1][indices]), chosen, 4)
            logits = texts.evaluated(classifier, [3, 9, 0])
        expected = next_token_loss(
            copy.deepcopy(model).cpu().double()(torch.from_numpy(rows[0])), torch.from_numpy(rows[1])
        )
        assert found.mean == pytest.approx(float(expected.detach()), rel=TOLERANCES[precision])
        wanted = copy.deepcopy(classifier).cpu().double()(texts.token_ids[[3, 9, 0]], texts.lengths[[3, 9, 0]])
        assert (logits.double() - wanted).norm() < 2 * TOLERANCES[precision] * wanted.norm()

    for cached in (False, True):
        if cached:
            with run.autocast():
                texts.cache_frozen_blocks(classifier, 4)
        check()
        with torch.no_grad():
            for weight in [*model.blocks.parameters(), *classifier.backbone.blocks[-1].parameters()]:  # type: ignore[union-attr]
                weight.mul_(1.5)
        check()


@on_every_device
@pytest.mark.parametrize("precision", ["float32", "exact"])
def test_greedy_tokens_are_those_of_the_textbook_on_the_cpu(device: str, precision: str) -> None:
    """With prompts of different lengths, rows that end early, and rows that outgrow the context."""
    prompts = [[1], [5, 6, 7], [2] * 9, [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8], [11] * CONTEXT]
    start("cpu", precision)
    stopping = Stopping(CONTEXT, None, lambda row, token_ids: len(token_ids) == 20 - 3 * row)
    expected = generate(gpt(), prompts, stopping)
    assert len({len(found.token_ids) for found in expected}) > 2
    run = start(device, precision)
    with run.autocast():
        assert generate(for_inference(gpt(device)), prompts, stopping) == expected


def trained(task: Task, device: str, run: Run) -> dict[str, Any]:
    """Everything that a training leaves, in bytes."""
    model = gpt(device, dropout=0.2)
    curve = train(model, task, run).curve
    return {"curve": curve} | {name: tensor.cpu().numpy().tobytes() for name, tensor in model.state_dict().items()}


@pytest.mark.long
@on_every_device
@compiled_or_not
@on_both_tasks
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_two_runs_give_the_same_bits(
    training_values: dict[str, Any], device: str, compiled: bool, build: Build, precision: str
) -> None:
    task = build(training_values)
    first, second = (trained(task, device, start(device, precision, compiled)) for _ in range(2))
    assert first == second
    assert len(first["curve"]) == 6
    assert first["curve"][0]["loss"] != first["curve"][-1]["loss"]


@pytest.mark.long
@on_every_device
@compiled_or_not
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_interrupted_run_resumes_to_the_same_bits(
    training_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, compiled: bool,
    precision: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("SCRATCHLM_RESUME_SECONDS", "0")
    monkeypatch.setattr("scratchlm.run.resume.PAUSE_PER_COST", 0)
    task, n_evaluations = windows(training_values), 0

    def interrupted(model: GPTModel) -> dict[str, float]:
        nonlocal n_evaluations
        n_evaluations += 1
        if n_evaluations == 3:
            raise KeyboardInterrupt
        return first_weight(model)

    def attempt(task: Task) -> dict[str, Any]:
        return trained(task, device, start(device, precision, compiled, Checkpoint(tmp_path, "f" * 64, "test")))

    expected = trained(task, device, start(device, precision, compiled))
    with pytest.raises(KeyboardInterrupt):
        attempt(task._replace(evaluate=interrupted))
    assert list(tmp_path.iterdir())
    assert attempt(task) == expected


@pytest.mark.gpu
@compiled_or_not
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_training_step_never_waits_for_the_card(
    training_values: dict[str, Any], compiled: bool, precision: str
) -> None:
    """As far as torch sees it: no copy to or from pageable memory, no number read from the card."""
    state = TrainingState(gpt("cuda"), windows(training_values), start("cuda", precision, compiled))
    for _ in range(3):
        optimizer_step(state)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            optimizer_step(state)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.slow  # on the CPU: tests/unit/fast/test_compiler.py
@on_every_device
@on_both_tasks
def test_nothing_is_compiled_again_after_the_first_epoch(
    training_values: dict[str, Any], device: str, build: Build
) -> None:
    state = TrainingState(gpt(device), build(training_values), start(device, "bfloat16", compiled=True))
    for _ in range(STEPS_OF_AN_EPOCH):
        optimizer_step(state)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(STEPS_OF_AN_EPOCH):
            optimizer_step(state)
