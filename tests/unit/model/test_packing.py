"""Packed sequences against padded ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scratchlm.model.config import GPTConfig
from scratchlm.model.gpt import GPTModel, build_model
from scratchlm.model.packing import Packing

LENGTHS = st.lists(st.integers(0, 8), min_size=1, max_size=5).filter(any)


def model(attention: str = "explicit") -> GPTModel:
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


def test_packing_by_hand() -> None:
    packing = Packing(torch.tensor([2, 0, 3]))
    padded = torch.tensor([[1, 2, 9, 9], [9, 9, 9, 9], [3, 4, 5, 9]])
    assert packing.width == 3
    assert packing.starts.tolist() == [0, 2, 2]
    assert packing.positions.tolist() == [0, 1, 0, 1, 2]
    assert packing.pack(padded).tolist() == [1, 2, 3, 4, 5]
    assert packing.pad(torch.tensor([1, 2, 3, 4, 5])).tolist() == [[1, 2, 0], [0, 0, 0], [3, 4, 5]]


@given(LENGTHS)
def test_what_is_packed_and_padded_is_as_before_and_zero_behind_its_end(lengths: list[int]) -> None:
    padded = torch.rand(len(lengths), 8, 2, generator=torch.Generator().manual_seed(1))
    packing = Packing(torch.tensor(lengths))
    packed = packing.pack(padded)
    assert torch.equal(packed, real(padded, lengths))
    again = packing.pad(packed)
    assert again.shape == (len(lengths), max(lengths), 2)
    assert torch.equal(real(again, lengths), packed)
    assert torch.equal(again.sum(), packed.sum()) or torch.allclose(again.sum(), packed.sum())


@settings(deadline=None, max_examples=30)
@given(LENGTHS, st.sampled_from(["explicit", "sdpa"]))
def test_packed_states_and_their_gradients_are_those_of_padded_rows(lengths: list[int], attention: str) -> None:
    token_ids, packing, decoder = tokens(len(lengths)), Packing(torch.tensor(lengths)), model(attention)
    found = []
    for packed in (False, True):
        decoder.zero_grad()
        if packed:
            hidden = decoder.packed_states(packing.pack(token_ids), packing)
        else:
            hidden = real(decoder.hidden_states(token_ids), lengths)
        hidden.square().sum().backward()
        found.append((hidden.detach(), {name: p.grad for name, p in decoder.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)


@torch.no_grad()
@settings(deadline=None, max_examples=20)
@given(st.data(), st.integers(0, 3), st.sampled_from(["explicit", "sdpa"]))
def test_blocks_in_two_parts_and_one_position_are_the_whole_pass(
    data: st.DataObject, n_blocks: int, attention: str
) -> None:
    lengths = data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=5))
    columns = torch.tensor([data.draw(st.integers(0, length - 1)) for length in lengths])
    token_ids, packing, decoder = tokens(len(lengths)), Packing(torch.tensor(lengths)), model(attention)
    expected = decoder.hidden_states(token_ids)
    encoded = decoder.encode(packing.pack(token_ids), packing, n_blocks)
    finished = decoder.finish(encoded, packing, n_blocks)
    torch.testing.assert_close(finished, real(expected, lengths), rtol=1e-9, atol=1e-9)
    read = decoder.finish(encoded, packing, n_blocks, columns)
    torch.testing.assert_close(read, expected[torch.arange(len(lengths)), columns], rtol=1e-9, atol=1e-9)


def test_more_tokens_than_the_context_holds_are_refused() -> None:
    packing = Packing(torch.tensor([9, 1]))
    with pytest.raises(ValueError, match="9 tokens do not fit the model's context_length of 8"):
        model().packed_states(torch.zeros(10, dtype=torch.int64), packing)
