import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchlm.arithmetic.random import (
    drawing_from,
    fill_as_linear,
    generator,
    random_states,
    restore_random_states,
    stream,
    uniform_draws,
)


def test_a_stream_is_the_same_everywhere_and_for_ever() -> None:
    assert stream(123, "initialisation") == 5369488138940669752
    assert stream(123, "data order 3") == 2258963803529466844


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.text(max_size=5)), min_size=2, unique=True))
def test_every_seed_and_purpose_has_a_stream_of_its_own(keys: list[tuple[int, str]]) -> None:
    streams = [stream(*key) for key in keys]
    assert len(set(streams)) == len(keys)
    assert all(0 <= value < 2**63 for value in streams)


def test_neighbouring_seeds_give_unrelated_numbers() -> None:
    draws = torch.stack([torch.randn(2000, generator=generator(seed, "dropout")) for seed in range(3)])
    assert (torch.corrcoef(draws) - torch.eye(3)).abs().max() < 0.1


def test_a_generator_starts_anew_and_leaves_the_global_stream_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first, second = (torch.randperm(50, generator=generator(7, "order")).tolist() for _ in range(2))
    assert first == second
    assert torch.equal(torch.rand(3), expected)


def test_what_is_drawn_from_a_seed_does_not_move_the_global_stream() -> None:
    with drawing_from(3):
        first, before = torch.rand(2), torch.get_rng_state()
        with drawing_from(3):
            assert torch.equal(torch.rand(2), first)
        assert torch.equal(torch.get_rng_state(), before)


def test_each_row_draws_from_its_own_generator() -> None:
    together = uniform_draws([generator(1, "a"), generator(1, "b")])
    assert together.dtype == torch.float64
    assert together[1:].equal(uniform_draws([generator(1, "b")]))


def test_weights_are_filled_as_torchs_linear_layer_begins() -> None:
    with drawing_from(5):
        expected = torch.nn.Linear(7, 4).weight
    with drawing_from(5):
        weight = torch.empty(4, 7)
        fill_as_linear(weight)
    assert torch.equal(weight, expected)


def test_restored_states_give_the_same_draws_again() -> None:
    with drawing_from(1):
        states = random_states(torch.device("cpu"))
        drawn = torch.rand(3)
        restore_random_states(states)
        assert torch.equal(torch.rand(3), drawn)
