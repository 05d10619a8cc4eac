"""That none of this imports torch's compiler is tested in tests/unit/test_stage_imports.py."""

from collections.abc import Callable

import torch

from scratchlm.fast.torch_startup import AdamW, shapes_only
from scratchlm.model.gpt import GPTModel


def test_within_shapes_only_a_model_has_its_shapes_and_no_numbers(tiny_gpt: Callable[..., GPTModel]) -> None:
    expected, before = tiny_gpt(initialisation="gpt2"), torch.get_rng_state()
    with shapes_only():
        found = GPTModel(expected.config)
    assert all(parameter.is_meta for parameter in found.parameters())
    shapes = [{name: p.shape for name, p in model.state_dict().items()} for model in (found, expected)]
    assert shapes[0] == shapes[1]
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.nn.Linear(2, 2).weight.is_meta


def test_adamw_takes_torchs_steps_to_the_last_bit() -> None:
    found = []
    for optimizer_class in (AdamW, torch.optim.AdamW):
        weight = torch.linspace(-1, 1, 9).requires_grad_()
        optimizer = optimizer_class([weight], lr=0.1, betas=(0.8, 0.9), weight_decay=0.3, fused=True)
        for power in (1, 2, 3):
            weight.pow(power).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert weight.grad is None
        found.append(weight.detach())
    assert torch.equal(*found)
