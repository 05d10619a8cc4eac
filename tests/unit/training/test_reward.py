"""Rewards against the textbook forward pass, whatever the batches, and their gradients against torch's."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from scratchlm.arithmetic.autograd import collect_gradients
from scratchlm.arithmetic.mode import exact_arithmetic
from scratchlm.model.reward import RewardModel
from scratchlm.tasks.reward import pair_losses
from scratchlm.training.reward import join, last_token_rewards, rewards

SEQUENCES = [[1, 2, 3, 4, 5], [5, 6], [9], [7, 8, 9], [1, 2, 3, 4, 5, 6, 7, 8]]


@pytest.fixture
def model(tiny_gpt: Any) -> RewardModel:
    model = RewardModel(tiny_gpt(n_layers=3))
    with torch.no_grad():
        model.head.weight.copy_(torch.linspace(-1, 1, 8)[None])
        model.origin.fill_(0.25)
    return model.eval()


def test_a_new_model_gives_every_sequence_reward_0(tiny_gpt: Any) -> None:
    found = rewards(RewardModel(tiny_gpt()), SEQUENCES)
    assert found.tolist() == [0.0] * 5
    assert found.dtype == torch.float64


@torch.no_grad()
def test_a_reward_is_the_head_on_the_last_tokens_state_less_the_origin(model: RewardModel, tiny_gpt: Any) -> None:
    hidden = [tiny_gpt(n_layers=3).hidden_states(torch.tensor([sequence]))[0, -1] for sequence in SEQUENCES]
    expected = [float(model.head.weight[0] @ state) - 0.25 for state in hidden]
    assert rewards(model, SEQUENCES).tolist() == pytest.approx(expected, abs=1e-6)
    padded = torch.tensor([[*sequence, *[0] * (8 - len(sequence))] for sequence in SEQUENCES])
    assert model(padded, torch.tensor([*map(len, SEQUENCES)])).tolist() == pytest.approx(expected, abs=1e-6)


@settings(max_examples=15)
@given(order=st.permutations(range(5)), batch_size=st.integers(1, 6))
def test_in_exact_arithmetic_neither_order_nor_batches_change_a_bit(
    tiny_gpt: Any, order: list[int], batch_size: int
) -> None:
    with exact_arithmetic():
        model = RewardModel(tiny_gpt(attention="sdpa"))
        torch.nn.init.constant_(model.head.weight[0, :3], 1 / 3)
        alone = [rewards(model, [sequence]).item() for sequence in SEQUENCES]
        assert rewards(model, [SEQUENCES[i] for i in order], batch_size).tolist() == [alone[i] for i in order]
        assert len(set(alone)) == 5


@pytest.mark.parametrize("exact", [False, True])
def test_losses_and_gradients_are_torchs(model: RewardModel, exact: bool) -> None:
    pairs = SEQUENCES[:4]
    found, gradients = [], []
    for ours in (True, False):
        model.zero_grad()
        if ours and exact:
            with exact_arithmetic():
                loss = pair_losses(last_token_rewards(model, *join(pairs)).view(-1, 2)).sum()
                loss.backward()
                collect_gradients(model)
        elif ours:
            loss = pair_losses(last_token_rewards(model, *join(pairs)).view(-1, 2)).sum()
            loss.backward()
        else:
            padded = torch.tensor([[*sequence, *[0] * (8 - len(sequence))] for sequence in pairs])
            chosen, rejected = model(padded, torch.tensor([*map(len, pairs)])).view(-1, 2).T
            loss = -F.logsigmoid(chosen - rejected).sum()  # as trl's RewardTrainer computes it
            loss.backward()
        found.append(loss.detach())
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_autocast_leaves_the_head_in_float32(model: RewardModel) -> None:
    states = torch.rand(3, 8, generator=torch.Generator().manual_seed(1))
    expected = model.read(states).tolist()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.read(states).tolist() == expected


def test_measuring_leaves_the_mode_and_no_sequences_give_no_rewards(model: RewardModel) -> None:
    model.train()
    assert rewards(model, []).tolist() == []
    rewards(model, SEQUENCES)
    assert model.training


@pytest.mark.parametrize(("sequences", "words"), [([[1], []], "without tokens"), ([[1] * 9], "do not fit")])
def test_sequences_that_have_no_reward_are_refused(model: RewardModel, sequences: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        rewards(model, sequences)
