"""Rows without padding against padded rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scratchlm.fast.varlen import VarlenLayout, embed, last_token_states, run_blocks, varlen_states
from scratchlm.model.cache import KVCache
from scratchlm.model.config import GPTConfig
from scratchlm.model.gpt import GPTModel, build_model

LENGTHS = st.lists(st.integers(0, 8), min_size=1, max_size=5).filter(any)


def model(attention: str = "eager") -> GPTModel:
    config = GPTConfig(
        vocab_size=11, context_length=8, emb_dim=8, n_heads=2, n_layers=3, dropout=0.0, qkv_bias=True, tied_head=False,
        initialisation="torch", attention=attention,
    )  # fmt: skip
    return build_model(config, seed=0).double()


def tokens(n_rows: int) -> Tensor:
    return torch.randint(11, (n_rows, 8), generator=torch.Generator().manual_seed(n_rows))


def real(padded: Tensor, lengths: list[int]) -> Tensor:
    """Row by row, the first `length` columns."""
    return torch.cat([row[:length] for row, length in zip(padded, lengths, strict=True)])


def test_the_layout_by_hand() -> None:
    layout = VarlenLayout(torch.tensor([2, 0, 3]))
    padded = torch.tensor([[1, 2, 9, 9], [9, 9, 9, 9], [3, 4, 5, 9]])
    assert layout.max_seqlen == 3
    assert layout.cu_seqlens.tolist() == [0, 2, 2, 5]
    assert layout.indices.tolist() == [0, 1, 6, 7, 8]
    assert layout.positions.tolist() == [0, 1, 0, 1, 2]
    assert layout.unpad(padded).tolist() == [1, 2, 3, 4, 5]
    assert layout.pad(torch.tensor([1, 2, 3, 4, 5])).tolist() == [[1, 2, 0], [0, 0, 0], [3, 4, 5]]


@given(LENGTHS)
def test_rows_unpadded_and_padded_again_are_as_before_and_zero_after_their_end(lengths: list[int]) -> None:
    padded = torch.rand(len(lengths), 8, 2, generator=torch.Generator().manual_seed(1))
    layout = VarlenLayout(torch.tensor(lengths))
    unpadded = layout.unpad(padded)
    assert torch.equal(unpadded, real(padded, lengths))
    again = layout.pad(unpadded)
    assert again.shape == (len(lengths), max(lengths), 2)
    assert torch.equal(real(again, lengths), unpadded)
    assert torch.equal(again.sum(), unpadded.sum()) or torch.allclose(again.sum(), unpadded.sum())


@settings(deadline=None, max_examples=30)
@given(LENGTHS, st.sampled_from(["eager", "sdpa"]))
def test_states_and_their_gradients_are_those_of_padded_rows(lengths: list[int], attention: str) -> None:
    token_ids, layout, decoder = tokens(len(lengths)), VarlenLayout(torch.tensor(lengths)), model(attention)
    found = []
    for without_padding in (False, True):
        decoder.zero_grad()
        if without_padding:
            hidden = varlen_states(decoder, layout.unpad(token_ids), layout)
        else:
            hidden = real(decoder.hidden_states(token_ids), lengths)
        hidden.square().sum().backward()
        found.append((hidden.detach(), {name: p.grad for name, p in decoder.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)


@torch.no_grad()
@settings(deadline=None, max_examples=20)
@given(st.data(), st.integers(0, 3), st.sampled_from(["eager", "sdpa"]))
def test_blocks_in_two_parts_and_the_last_token_alone_are_the_whole_pass(
    data: st.DataObject, n_blocks: int, attention: str
) -> None:
    lengths = data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=5))
    token_ids, layout, decoder = tokens(len(lengths)), VarlenLayout(torch.tensor(lengths)), model(attention)
    expected = decoder.hidden_states(token_ids)
    encoded = run_blocks(decoder, embed(decoder, layout.unpad(token_ids), layout), layout, 0, n_blocks)
    finished = decoder.final_norm(run_blocks(decoder, encoded, layout, n_blocks, 3))
    torch.testing.assert_close(finished, real(expected, lengths), rtol=1e-9, atol=1e-9)
    last = last_token_states(decoder, encoded, layout, n_blocks)
    torch.testing.assert_close(last, expected[torch.arange(len(lengths)), layout.lengths - 1], rtol=1e-9, atol=1e-9)


def test_gradients_of_the_last_token_are_those_of_the_whole_pass() -> None:
    layout, token_ids, found = VarlenLayout(torch.tensor([5, 2, 8])), tokens(3), []
    for whole in (True, False):
        decoder = model("sdpa")
        if whole:
            last = decoder.hidden_states(token_ids)[torch.arange(3), layout.lengths - 1]
        else:
            last = last_token_states(decoder, embed(decoder, layout.unpad(token_ids), layout), layout)
        last.square().sum().backward()
        found.append({name: p.grad for name, p in decoder.named_parameters() if p.grad is not None})
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_cache_filled_without_padding_continues_as_one_filled_by_the_textbook_pass(attention: str) -> None:
    decoder, layout, following = model(attention), VarlenLayout(torch.tensor([5, 1, 3])), []
    token_ids = tokens(3)
    for whole in (True, False):
        cache = KVCache(n_layers=3, n_rows=3, context_length=8)
        if whole:
            decoder(token_ids[:, :5], cache)
        else:
            last_token_states(decoder, embed(decoder, layout.unpad(token_ids), layout), layout, cache=cache)
        cache.lengths = layout.lengths.tolist()
        following.append(decoder(token_ids[:, 5:7], cache))
    torch.testing.assert_close(following[1], following[0], rtol=1e-9, atol=1e-9)


def test_more_tokens_than_the_context_holds_are_refused() -> None:
    layout = VarlenLayout(torch.tensor([9, 1]))
    with pytest.raises(ValueError, match="9 tokens do not fit the model's context_length of 8"):
        varlen_states(model(), torch.zeros(10, dtype=torch.int64), layout)
