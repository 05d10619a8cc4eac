from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from scratchlm.model.lora import LoRALinear, LoRAParams, apply_lora, merge_lora
from scratchlm.run.context import Run
from scratchlm.run.errors import UserError
from scratchlm.tasks.instruct import FinetuneInstructParams, Instructions, instruct_task
from scratchlm.training.loop import Task, no_sample, train

ROWS = [
    {"prompt_token_ids": [1, 2], "response_token_ids": [3, 4]},
    {"prompt_token_ids": [5], "response_token_ids": [6]},
    {"prompt_token_ids": [7, 8, 9], "response_token_ids": []},
    {"prompt_token_ids": [1], "response_token_ids": [2, 3]},
]


@pytest.fixture(scope="session")
def params(training_values: dict[str, Any]) -> Any:
    values = training_values | {"base": "pretrain", "mask_instruction": True, "dropout": 0.0, "lora": None}
    return lambda **changes: FinetuneInstructParams(**values | changes)


def task_of(params: FinetuneInstructParams) -> Task:
    instructions = Instructions({"train": ROWS}, SimpleNamespace(end_token_id=0), 8)  # type: ignore[arg-type]
    evaluation = SimpleNamespace(evaluate=lambda model: {"loss": 0.0}, sample=no_sample)
    return instruct_task(instructions, params, evaluation)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mask", "targets", "n_scored"),
    [(True, [[6, 0, -100, -100], [-100, 3, 4, 0]], 5), (False, [[6, 0, -100, -100], [2, 3, 4, 0]], 6)],
)
def test_a_batch_by_hand(params: Any, mask: bool, targets: list[list[int]], n_scored: int) -> None:
    task = task_of(params(mask_instruction=mask))
    batch = task.batch(np.array([1, 0]))
    assert task.n_examples == 4
    assert [tensor.tolist() for tensor in batch.tensors] == [[[5, 6, 0, 0], [1, 2, 3, 4]], targets]
    assert batch.n_scored == n_scored


def test_the_loss_is_torchs_over_response_tokens(tiny_gpt: Any, params: Any) -> None:
    model, task = tiny_gpt().double(), task_of(params())
    inputs, targets = task.batch(np.arange(4)).tensors
    mean = task.loss(model, inputs, targets) / task.batch(np.arange(4)).n_scored
    torch.testing.assert_close(mean, F.cross_entropy(model(inputs).transpose(1, 2), targets))


def test_without_lora_everything_trains(tiny_gpt: Any, params: Any) -> None:
    model = tiny_gpt()
    apply_lora(model, None, 1)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("tied", [True, False])
def test_with_lora_training_moves_its_matrices_and_nothing_else(tiny_gpt: Any, params: Any, tied: bool) -> None:
    p = params(lora=LoRAParams(rank=2, alpha=2.0, layers="all"), epochs=4)
    model = tiny_gpt(tied_head=tied)
    inputs = torch.tensor([[1, 2, 3]])
    untouched = model(inputs)
    apply_lora(model, p.lora, 1)
    assert isinstance(model.head, LoRALinear) != tied
    assert torch.equal(model(inputs), untouched)  # B starts at zero
    before = {name: value.clone() for name, value in model.named_parameters()}
    train(model, task_of(p), Run(seed=7))
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if name.split(".")[-1] in ("A", "B")}
    learned = model(inputs)
    assert not torch.allclose(learned, untouched, atol=1e-4)
    merge_lora(model)
    torch.testing.assert_close(model(inputs), learned, rtol=1e-5, atol=1e-5)


def test_the_matrices_are_drawn_from_the_seed(tiny_gpt: Any, params: Any) -> None:
    drawn = []
    for seed in (1, 1, 2):
        model = tiny_gpt()
        torch.manual_seed(len(drawn))
        apply_lora(model, LoRAParams(rank=2, alpha=2.0, layers="all"), seed)
        drawn.append(model.head.A.detach())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def instructions_of(context_length: int, *lengths: tuple[int, int]) -> Instructions:
    rows = [{"id": f"task-{i}", "prompt_token_ids": [1] * p, "response_token_ids": [2] * r}
            for i, (p, r) in enumerate(lengths)]  # fmt: skip
    return Instructions({"train": rows[:-1], "test": rows[-1:]}, SimpleNamespace(end_token_id=0), context_length)  # type: ignore[arg-type]


def test_prompts_beyond_the_context_are_refused_by_name_before_any_work() -> None:
    with pytest.raises(UserError) as caught:
        instructions_of(8, (9, 1), (8, 0), (3, 2), (300, 5))
    assert str(caught.value) == (
        "2 instructions have prompts longer than the model's context of 8 tokens, so no response to them can be scored "
        "(task-0, task-3); shorten or remove them, or use a longer context"
    )
    with pytest.raises(UserError, match=r"\(task-0, task-1, task-2, task-3, task-4, …\)"):
        instructions_of(8, *[(9, 1)] * 7)


def test_every_taken_prompt_has_a_scored_target_and_cut_responses_are_counted() -> None:
    instructions = instructions_of(8, (8, 0), (8, 1), (5, 3), (5, 4), (1, 0))
    for rows in instructions.splits.values():
        _, targets = instructions.batch(rows, mask_instruction=True)
        assert ((targets != -100).sum(axis=1) > 0).all()
    assert (instructions.n_cut("train"), instructions.n_cut("test")) == (2, 0)
