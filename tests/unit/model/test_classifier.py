"""The classifier: pooling by hand, what freezing leaves trainable, independence from padding."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scratchlm.model.classifier import GPTClassifier, Position, Trainable, freeze
from scratchlm.model.config import GPTConfig, gpt2_config
from scratchlm.model.gpt import GPTModel, build_model, parameter_count

TINY = GPTConfig(
    vocab_size=11,
    context_length=8,
    emb_dim=8,
    n_heads=2,
    n_layers=3,
    dropout=0.0,
    qkv_bias=True,
    tied_head=True,
    initialisation="torch",
    attention="sdpa",
)
TOKEN_IDS = torch.tensor([[1, 2, 3, 4, 5], [5, 6, 0, 0, 0], [9, 0, 0, 0, 0], [7, 8, 9, 0, 0]])
LENGTHS = torch.tensor([5, 2, 1, 3])


def pool(hidden: Tensor, lengths: Tensor, position: Position) -> Tensor:
    """What a position reads, text by text: (B, T, C), (B,) -> (B, C)."""
    read = {
        "first": lambda states, n: states[0],
        "last": lambda states, n: states[-1],
        "last_real": lambda states, n: states[n - 1],
        "mean": lambda states, n: states[:n].mean(dim=0),
    }
    return torch.stack([read[position](states, n) for states, n in zip(hidden, lengths.tolist(), strict=True)])


def classifier(position: Position) -> GPTClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPTClassifier(GPTModel(TINY), n_classes=2, position=position)


CLASSIFIERS = {position: classifier(position) for position in get_args(Position)}


@torch.no_grad()
@pytest.mark.parametrize("position", get_args(Position))
def test_class_logits_are_the_head_applied_to_the_pooled_hidden_states(position: Position) -> None:
    model = classifier(position)
    hidden = build_model(TINY, seed=0).hidden_states(TOKEN_IDS)
    expected = model.head(pool(hidden, LENGTHS, position))
    torch.testing.assert_close(model(TOKEN_IDS, LENGTHS), expected, atol=1e-5, rtol=0)
    assert expected.shape == (4, 2)


def test_the_language_model_head_is_gone_and_the_token_embedding_stays() -> None:
    model = classifier("last")
    assert parameter_count(model) == parameter_count(GPTModel(TINY)) + 2 * 8 + 2
    assert not list(model.backbone.head.parameters())


@torch.no_grad()
@settings(max_examples=20, deadline=None)
@given(
    text=st.lists(st.integers(0, 10), min_size=1, max_size=5),
    padding=st.lists(st.integers(0, 10), min_size=1, max_size=3),
    position=st.sampled_from(["first", "last_real", "mean"]),
)
def test_padding_does_not_change_the_logits(text: list[int], padding: list[int], position: Position) -> None:
    model, length = CLASSIFIERS[position], torch.tensor([len(text)])
    alone, padded = model(torch.tensor([text]), length), model(torch.tensor([text + padding]), length)
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_padding_does_change_what_the_last_column_says() -> None:
    model, length = classifier("last"), torch.tensor([2])
    assert not torch.allclose(model(torch.tensor([[1, 2, 0]]), length), model(torch.tensor([[1, 2]]), length))


def trainable_paths(trainable: Trainable) -> set[str]:
    model = classifier("last")
    freeze(model, "head")  # an earlier choice must not shine through
    freeze(model, trainable)
    return {path for path, parameter in model.named_parameters() if parameter.requires_grad}


def paths_under(*prefixes: str) -> set[str]:
    return {path for path, _ in classifier("last").named_parameters() if path.startswith(prefixes)}


@pytest.mark.parametrize(
    ("trainable", "prefixes"),
    [
        ("head", ["head."]),
        ("last_block", ["head.", "backbone.final_norm.", "backbone.blocks.2."]),
        ("last_two_blocks", ["head.", "backbone.final_norm.", "backbone.blocks.1.", "backbone.blocks.2."]),
        ("all", [""]),
    ],
)
def test_freezing_leaves_exactly_the_named_part_trainable(trainable: Trainable, prefixes: list[str]) -> None:
    assert trainable_paths(trainable) == paths_under(*prefixes)


@pytest.mark.parametrize("trainable", get_args(Trainable))
def test_a_step_of_training_changes_exactly_what_is_trainable(trainable: Trainable) -> None:
    model = classifier("last")
    freeze(model, trainable)
    before = {path: parameter.detach().clone() for path, parameter in model.named_parameters()}
    loss(model).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    changed = {path for path, parameter in model.named_parameters() if not torch.equal(parameter, before[path])}
    assert changed == trainable_paths(trainable)


def loss(model: GPTClassifier) -> Tensor:
    token_ids = torch.arange(8)[None]
    return torch.nn.functional.cross_entropy(model(token_ids, torch.tensor([8])), torch.tensor([1]))


@pytest.mark.parametrize(
    ("trainable", "n_blocks", "expected"),
    [("head", 0, 1_538), ("last_block", 1, 7_090_946), ("last_two_blocks", 2, 14_178_818)],
)
def test_trainable_parameters_of_the_124m_classifier_are_as_many_as_the_shapes_say(
    trainable: Trainable, n_blocks: int, expected: int
) -> None:
    C = 768
    with torch.device("meta"):
        model = GPTClassifier(GPTModel(gpt2_config("124M", 50257, 1024)), n_classes=2, position="last")
    freeze(model, trainable)
    attention = (C * 3 * C + 3 * C) + (C * C + C)
    feed_forward = (C * 4 * C + 4 * C) + (4 * C * C + C)
    final_norm = 2 * C if n_blocks else 0
    assert n_blocks * (attention + feed_forward + 4 * C) + final_norm + 2 * C + 2 == expected
    assert parameter_count(model, trainable_only=True) == expected
