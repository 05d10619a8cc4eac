"""The attention weights that a page shows are those that the model averages values with."""

from collections.abc import Callable

import pytest
import torch

from scratchlm.arithmetic.functions import repeat_heads
from scratchlm.model.attention_weights import attention_weights
from scratchlm.model.gpt import GPTModel

GROUPED = {"n_heads": 4, "n_kv_heads": 2, "position": "rope", "norm": "rms", "attention": "sdpa"}


@pytest.mark.parametrize("changes", [{}, GROUPED], ids=["gpt2", "grouped"])
def test_weights_times_values_are_the_output_of_the_attention(tiny_gpt: Callable[..., GPTModel], changes: dict) -> None:
    model, token_ids = tiny_gpt(**changes).eval(), torch.tensor([3, 1, 4, 1, 5])
    seen = []
    for block in model.blocks:
        block.attention.register_forward_hook(lambda module, inputs, output: seen.append((module, inputs[0], output)))
    before = model(token_ids[None])
    seen.clear()
    weights = attention_weights(model, token_ids)
    assert weights.shape == (2, model.config.n_heads, 5, 5)
    assert torch.equal(weights, weights.tril()) and (weights.diagonal(dim1=-2, dim2=-1) > 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    for of_layer, (attention, x, output) in zip(weights, seen, strict=True):
        value = repeat_heads(attention.split_heads(attention.qkv(x))[2], attention.n_heads // attention.n_kv_heads)
        torch.testing.assert_close(attention.projection((of_layer @ value[0]).transpose(0, 1).flatten(1))[None], output)
    assert all(len(block.attention._forward_hooks) == 1 for block in model.blocks)  # only that of this test
    assert torch.equal(model(token_ids[None]), before)


def test_a_first_token_reads_itself_alone_and_equal_keys_share_equally(tiny_gpt: Callable[..., GPTModel]) -> None:
    model = tiny_gpt()
    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv.weight.zero_()
            block.attention.qkv.bias.zero_()
    expected = torch.tensor([[1, 0, 0], [1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3]])
    torch.testing.assert_close(attention_weights(model, torch.tensor([1, 2, 3])), expected.expand(2, 2, 3, 3))
