"""Trainings through torch's compiler: the same losses, few programs, the same bits twice and after a kill."""

import shutil
import sysconfig
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from scratchlm.arithmetic.autograd import collect_gradients
from scratchlm.arithmetic.fingerprint import arithmetic_fingerprint
from scratchlm.arithmetic.mode import exact_arithmetic, use_compiler
from scratchlm.arithmetic.sequences import begin_forward
from scratchlm.data.windows import TokenWindows
from scratchlm.fast import compiler
from scratchlm.fast.compiler import compiled, compiler_version, padded_length, refuse_missing_compiler
from scratchlm.model.classifier import GPTClassifier
from scratchlm.model.lora import LoRAParams, apply_lora
from scratchlm.run.context import Run
from scratchlm.run.errors import UserError
from scratchlm.tasks.instruct import FinetuneInstructParams, Instructions, instruct_task
from scratchlm.tasks.pretraining import pretraining_task
from scratchlm.tasks.spam import padded_texts, spam_task, static_class_loss
from scratchlm.training.loop import Task, TrainingState, no_sample, optimizer_step, train
from scratchlm.training.losses import static_next_token_loss, summed_next_token_loss, summed_window_loss
from scratchlm.training.optimizer import TrainingParams

WAITING = {"aten._local_scalar_dense.default", "aten.nonzero.default", "aten.masked_select.default"}  # on a GPU
TODAYS = {"position": "rope", "norm": "rms", "feed_forward": "swiglu", "hidden_dim": 12, "n_kv_heads": 1}


@pytest.fixture
def compiling() -> Iterator[None]:
    use_compiler("a version")
    yield
    use_compiler("")


@pytest.fixture(scope="session")
def params(training_values: dict[str, Any]) -> TrainingParams:
    return TrainingParams(**training_values)


def nothing(model: torch.nn.Module) -> dict[str, float]:
    return {"loss": 0.0}


def windows_task(params: TrainingParams) -> Task:
    return pretraining_task(TokenWindows(np.arange(60) * 7 % 11, 6, 4), params, nothing)


def responses(lengths: list[int]) -> Instructions:
    rows = [{"prompt_token_ids": [1, 2], "response_token_ids": [3] * n} for n in lengths]
    return Instructions({"train": rows}, SimpleNamespace(end_token_id=0), 256)  # type: ignore[arg-type]


def gradients(model: torch.nn.Module, loss: Any, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """The loss and its gradients."""
    model.zero_grad()
    begin_forward(1, 0)
    found = loss(model, *tensors)
    found.backward()
    collect_gradients(model)
    return [found.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def batch(n_unscored: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(3)
    inputs, targets = torch.randint(11, (2, 3, 8), generator=source)
    targets[0, :n_unscored] = -100
    return inputs, targets


@pytest.mark.parametrize("changes", [{}, {"tied_head": True}, TODAYS], ids=["gpt2", "tied", "llama"])
def test_computing_every_position_gives_the_same_loss_and_gradients(tiny_gpt: Any, changes: dict[str, Any]) -> None:
    model = tiny_gpt(**changes).double()
    expected = gradients(model, summed_next_token_loss, *batch(5))
    torch.testing.assert_close(gradients(model, static_next_token_loss, *batch(5)), expected)


def test_a_head_with_lora_is_called_as_it_is(tiny_gpt: Any) -> None:
    model = tiny_gpt()
    apply_lora(model, LoRAParams(rank=2, alpha=2.0, layers="all"), seed=1)
    torch.nn.init.normal_(model.head.B)
    expected = gradients(model, summed_next_token_loss, *batch())
    torch.testing.assert_close(gradients(model, static_next_token_loss, *batch()), expected)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "exact"])
def test_windows_need_no_layout_and_have_the_same_bits(tiny_gpt: Any, precision: str) -> None:
    def found(loss: Any) -> list[torch.Tensor]:
        model = tiny_gpt(dropout=0.5).train()
        torch.manual_seed(1)
        with Run(precision=precision).autocast():
            return gradients(model, loss, *batch())

    with exact_arithmetic() if precision == "exact" else torch.enable_grad():
        ours, theirs = found(summed_window_loss), found(summed_next_token_loss)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


class NeverWait(TorchDispatchMode):
    """Fails where a GPU would have to finish before the process can go on."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert str(func) not in WAITING, f"{func} waits for the GPU"
        return func(*args, **(kwargs or {}))


def test_a_pretraining_step_never_waits_for_a_gpu(tiny_gpt: Any, params: TrainingParams) -> None:
    state = TrainingState(tiny_gpt(), windows_task(params), Run(seed=7))
    with NeverWait():
        assert optimizer_step(state) == 4 * 6
    with NeverWait(), pytest.raises(AssertionError, match="waits for the GPU"):
        summed_next_token_loss(state.model, *batch(5))  # the watch can find something


def test_rows_have_few_lengths() -> None:
    lengths = [padded_length(n, 1000) for n in (1, 64, 65, 128, 200, 512, 513, 1000)]
    assert lengths == [64, 64, 128, 128, 256, 512, 1000, 1000]
    assert padded_length(7, 8) == 8


def test_a_compiled_batch_is_padded_without_being_scored(
    compiling: None, tiny_gpt: Any, training_values: dict[str, Any]
) -> None:
    p = FinetuneInstructParams(**training_values, base="x", mask_instruction=True, dropout=0.0, lora=None)
    task = instruct_task(responses([5, 90]), p, SimpleNamespace(evaluate=nothing, sample=no_sample))  # type: ignore[arg-type]
    (inputs, targets), n_scored = task.batch(np.array([0, 1]))
    assert inputs.shape == targets.shape == (2, 128)
    assert n_scored == (5 + 1) + (90 + 1) == int((targets != -100).sum())
    model = tiny_gpt(context_length=256)
    use_compiler("")
    plain, _ = task.batch(np.array([0, 1]))
    torch.testing.assert_close(static_next_token_loss(model, inputs, targets), summed_next_token_loss(model, *plain))


@pytest.mark.parametrize("trainable", [True, False])
def test_spam_is_compiled_where_no_frozen_blocks_are_cached(
    tiny_gpt: Any, params: TrainingParams, trainable: bool
) -> None:
    classifier = GPTClassifier(tiny_gpt(), 2, "last_real").requires_grad_(trainable)
    texts, labels = padded_texts([[1, 2, 3], [4]], 0, 5), np.array([0, 1])
    texts.cache_frozen_blocks(classifier, 2)
    task = spam_task(texts, labels, params, SimpleNamespace(evaluate=nothing))  # type: ignore[arg-type]
    assert task.static_loss is (static_class_loss if trainable else None)
    classifier.requires_grad_(True)
    if task.static_loss:
        tensors = task.batch(np.array([0, 1])).tensors
        torch.testing.assert_close(
            gradients(classifier, task.static_loss, *tensors), gradients(classifier, task.loss, *tensors)
        )


@pytest.mark.long
def test_a_compiled_training_equals_the_plain_one_and_repeats_its_bits(
    compiling: None, tiny_gpt: Any, params: TrainingParams
) -> None:
    def learn() -> tuple[torch.Tensor, float]:
        """All weights, and the loss on a batch."""
        model = tiny_gpt(attention="sdpa", n_layers=1)
        train(model, windows_task(params), Run(seed=7, precision="bfloat16"))
        with torch.no_grad():
            loss = float(summed_next_token_loss(model, *batch()))
        return torch.cat([p.detach().flatten() for p in model.parameters()]), loss

    weights, loss = learn()
    assert torch.equal(learn()[0], weights)
    use_compiler("")
    assert learn()[1] == pytest.approx(loss, rel=1e-3)
    untrained = float(summed_next_token_loss(tiny_gpt(n_layers=1), *batch()))
    assert abs(untrained / loss - 1) > 0.01


@pytest.mark.long
def test_a_shape_is_compiled_once(tiny_gpt: Any) -> None:
    def calls_without_a_new_program(*tensors: torch.Tensor) -> None:
        with torch.compiler.set_stance("fail_on_recompile"):
            program(model, *tensors).backward()

    model, program = tiny_gpt(**TODAYS, n_layers=1), compiled(static_next_token_loss)
    program(model, *batch()).backward()
    for unscored in (0, 5):
        calls_without_a_new_program(*batch(unscored))
    with pytest.raises(RuntimeError):
        calls_without_a_new_program(*(part[:2] for part in batch()))


@pytest.mark.parametrize(
    ("device", "lacking", "sentence"),
    [
        ("cpu", "compiler", r"lacks the system's compiler (g\+\+|clang\+\+), .*; install it, or set compile to false"),
        ("cpu", "header", "lacks Python's header Python.h, .*; install it, or set compile to false"),
        ("cuda", "triton", "lacks the package triton, .*; install it, or set compile to false"),
        ("cuda", "compiler", "lacks the system's compiler gcc, .*; install it, or set compile to false"),
        ("mps", "nothing", "compile is true, which was never tried on mps; set compile to false"),
    ],
)
def test_what_the_compiler_lacks_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str, lacking: str, sentence: str
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    header = tmp_path if lacking != "header" else tmp_path / "none"
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(shutil, "which", lambda name: None if lacking == "compiler" else name)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(header))
    found = None if lacking == "triton" else ModuleSpec("triton", None)
    monkeypatch.setattr(compiler, "find_spec", lambda name: found)
    with pytest.raises(UserError, match=sentence):
        refuse_missing_compiler(device)


def test_this_machine_has_a_compiler_whose_version_is_part_of_the_arithmetic(compiling: None) -> None:
    refuse_missing_compiler("cpu")
    assert any(char.isdigit() for char in compiler_version("cpu"))
    named = arithmetic_fingerprint()
    use_compiler("another version")
    other = arithmetic_fingerprint()
    use_compiler("")
    assert len({named, other, arithmetic_fingerprint()}) == 3
