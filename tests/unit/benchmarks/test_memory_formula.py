"""The formula of memory against what exists in a step of the loop, and against what a GPU allocated."""

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from benchmarks import memory
from benchmarks.memory import WORKSPACE_BYTES, Step, peak_bytes
from scratchlm.data.windows import TokenWindows
from scratchlm.fast.kernels import set_up
from scratchlm.model.config import GPTConfig, published_config
from scratchlm.model.gpt import GPTModel, build_model
from scratchlm.run.context import Run
from scratchlm.run.device import RuntimeParams
from scratchlm.tasks.pretraining import pretraining_task
from scratchlm.training import losses
from scratchlm.training.loop import TrainingState, optimizer_step
from scratchlm.training.memory import FLOAT32, block_bytes, least_bytes
from scratchlm.training.optimizer import TrainingParams

T = 520  # above it, attention is fused on the CPU, too
GPT2: dict[str, Any] = {
    "vocab_size": 3000, "context_length": T, "n_layers": 3, "n_heads": 4, "emb_dim": 256, "dropout": 0.0,
    "qkv_bias": True, "tied_head": True, "initialisation": "gpt2", "attention": "sdpa",
}  # fmt: skip
PARTS = [
    {"position": "rope"}, {"norm": "rms"}, {"feed_forward": "swiglu"}, {"n_kv_heads": 2}, {"hidden_dim": 8},
    {"head_dim": 16}, {"attention": "eager"},
]  # fmt: skip
ON_A_CARD = 0.05  # tolerance, as a share of what torch allocated


class Existing(TorchDispatchMode):
    """The bytes of all storages that exist, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._sizes: dict[int, int] = {}

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.now -= self._sizes.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for found in tree_iter(result):
            if isinstance(found, Tensor):
                self.add(found)
        return result


def training(config: GPTConfig, step: Step, values: dict[str, Any], run: Run) -> TrainingState:
    """After one optimizer step, which makes the moments."""
    changes = {
        "batch_size": step.n_rows * (2 if step.accumulates else 1), "max_micro_batch_size": step.n_rows,
        "checkpoint_activations": step.checkpoint, "warmup_steps": 0,
    }  # fmt: skip
    tokens = torch.randint(config.vocab_size, (4 * step.n_rows * step.n_tokens + 1,)).numpy()
    windows = TokenWindows(tokens, step.n_tokens, step.n_tokens)
    model = build_model(config, 1).to(run.device).train()
    task = pretraining_task(windows, TrainingParams(**values | changes), lambda model: {})
    state = TrainingState(model, task, run)
    optimizer_step(state)
    return state


@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({}, Step(2, T)),
        ({}, Step(2, T, checkpoint=True)),
        ({}, Step(2, T, "float32")),
        ({}, Step(1, T, accumulates=True)),
        ({"tied_head": False}, Step(1, T, checkpoint=True, accumulates=True)),
        ({"vocab_size": 100}, Step(2, T, "float32")),
        ({"vocab_size": 100}, Step(2, T, checkpoint=True)),
        ({"emb_dim": 512, "n_heads": 8}, Step(1, T, checkpoint=True)),
    ],
)  # fmt: skip
def test_the_peak_is_that_of_the_storages_of_a_step(
    training_values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], step: Step
) -> None:
    for module in (losses, memory):
        monkeypatch.setattr(module, "LOGITS_AT_ONCE", 1 << 20)  # 349 rows of 3,000
    config = GPTConfig(**GPT2 | changes)
    state, existing = training(config, step, training_values, Run(precision=step.precision)), Existing()
    for moments in state.optimizer.state.values():
        existing.add(moments["exp_avg"])
        existing.add(moments["exp_avg_sq"])
    for weight in state.model.parameters():
        existing.add(weight.data)
    always = existing.now
    assert always == 3 * FLOAT32 * config.n_parameters
    with existing:
        optimizer_step(state)
    formula = peak_bytes(config, step)
    assert formula - WORKSPACE_BYTES - always == pytest.approx(existing.most - always, rel=0.03)
    assert least_bytes(config, step.n_rows * step.n_tokens, step.checkpoint) < existing.most


def kept_bytes(model: GPTModel, precision: str) -> int:
    """Of all blocks, for two rows of T tokens: storages that the backward pass needs, without weights."""
    found: dict[int, int] = {}
    keep = []

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not {T, 2 * T}.isdisjoint(tensor.shape) and tensor.is_floating_point():  # no weight, nor a copy of one
            found[storage._cdata] = storage.nbytes()
            keep.append(storage)
        return tensor

    x = torch.randn(2, T, model.config.emb_dim, requires_grad=True)
    with saved_tensors_hooks(note, lambda tensor: tensor), Run(precision=precision).autocast():
        for block in model.blocks:
            x = block(x)
    return sum(found.values())


@pytest.mark.long
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_block_keeps_what_the_formula_says_and_one_of_other_parts_no_less(precision: str) -> None:
    def measured(changes: dict[str, Any]) -> tuple[float, int]:
        config = GPTConfig(**GPT2 | changes)
        n_tokens = 2 * T * config.n_layers
        return kept_bytes(build_model(config, 1), precision) / n_tokens, block_bytes(config, precision)

    per_token, formula = measured({})
    assert formula == pytest.approx(per_token, rel=0.005)
    for changes in PARTS:
        per_token, formula = measured(changes)
        assert formula <= per_token * 1.005, changes


def test_what_an_h100_allocated_is_what_the_formula_says() -> None:
    config = published_config("124M")
    head = FLOAT32 * config.vocab_size * config.emb_dim  # a gradient of it more was kept when this was measured
    measured = 8_531_515_392  # bytes, at commit a0240cb (docs/gpu.md, "Memory")
    assert peak_bytes(config, Step(16, 1024)) + head == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize(("size", "n_rows"), [("124M", 8), ("355M", 4), ("774M", 1)])
@pytest.mark.gpu
def test_a_card_allocates_what_the_formula_says(
    training_values: dict[str, Any], deterministic_as_before: None, size: Any, n_rows: int, checkpoint: bool
) -> None:
    config, step, run = published_config(size), Step(n_rows, 1024, checkpoint=checkpoint), Run()
    set_up(run, RuntimeParams(device="cuda", threads=2, precision="bfloat16", compile=False, seed=1))
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    state = training(config, step, training_values, run)
    torch.cuda.reset_peak_memory_stats()
    optimizer_step(state)
    allocated = torch.cuda.max_memory_allocated() - before
    assert peak_bytes(config, step) == pytest.approx(allocated, rel=ON_A_CARD)
