"""Low-rank adaptation: by hand, against the book's package, and that it touches what it should and nothing else."""

import math

import pytest
import torch
from llms_from_scratch.appendix_e import LinearWithLoRA
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from scratchlm.arithmetic.layers import Linear
from scratchlm.model.classifier import GPTClassifier
from scratchlm.model.config import GPTConfig, gpt2_config
from scratchlm.model.gpt import GPTModel, build_model, parameter_count
from scratchlm.model.lora import LoRALinear, LoRAParams, adapter_state, apply_lora, merge_lora

TINY = GPTConfig(
    vocab_size=11,
    context_length=8,
    emb_dim=8,
    n_heads=2,
    n_layers=2,
    dropout=0.0,
    qkv_bias=True,
    tied_head=False,
    initialisation="torch",
    attention="sdpa",
)
TOKEN_IDS = torch.arange(8)[None]
ALL = LoRAParams(rank=3, alpha=0.5, layers="all")
ATTENTION, FEED_FORWARD = (
    {"attention.qkv", "attention.projection"},
    {"feed_forward.expansion", "feed_forward.projection"},
)


def with_lora(model: nn.Module, params: LoRAParams = ALL) -> nn.Module:
    apply_lora(model, params, seed=0)
    return model


def randomise_updates(model: nn.Module) -> None:
    """As after training: B is zero at first, which would hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    for tensor in adapter_state(model).values():
        tensor.normal_(generator=generator)


def adapted(model: nn.Module) -> set[str]:
    return {path for path, module in model.named_modules() if isinstance(module, LoRALinear)}


def classifier() -> GPTClassifier:
    return GPTClassifier(build_model(TINY, seed=0), n_classes=2, position="last")


# By hand and against the book's package


def test_the_update_is_alpha_times_b_times_a() -> None:
    linear = Linear(2, 2, bias=False)
    linear.weight = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    layer = LoRALinear(linear, rank=1, alpha=0.5)
    layer.load_state_dict(
        {"A": torch.tensor([[[1.0, 1.0]]]), "B": torch.tensor([[1.0], [2.0]]), "linear.weight": linear.weight}
    )
    # W x = (5, 11), A x = 3, B A x = (3, 6)
    assert layer(torch.tensor([1.0, 2.0])).tolist() == [6.5, 14.0]
    assert layer.merged().weight.tolist() == [[1.5, 2.5], [4.0, 5.0]]


def test_a_layer_freezes_the_weight_that_it_adapts() -> None:
    layer = LoRALinear(Linear(3, 2), rank=1, alpha=1.0)
    assert {name for name, parameter in layer.named_parameters() if parameter.requires_grad} == {"A", "B"}


def test_a_layer_equals_the_books() -> None:
    linear = Linear(6, 4)
    ours, book = LoRALinear(linear, rank=2, alpha=3.0), LinearWithLoRA(linear, rank=2, alpha=3.0)
    nn.init.normal_(ours.B)
    book.lora.load_state_dict({"A": ours.A[0].T, "B": ours.B.T})
    x = torch.randn(2, 5, 6)
    torch.testing.assert_close(ours(x), book(x))


def test_each_part_of_a_fused_layer_has_an_update_of_its_own() -> None:
    parts = (4, 1, 1)
    fused = Linear(4, 6, parts=parts)
    layer = LoRALinear(fused, rank=2, alpha=1.5)
    nn.init.normal_(layer.B)
    x = torch.randn(5, 4)
    expected = []
    for weight, bias, a, b in zip(
        fused.weight.split(parts), fused.bias.split(parts), layer.A, layer.B.split(parts), strict=True
    ):
        expected.append(F.linear(x, weight + 1.5 * b @ a, bias))
    torch.testing.assert_close(layer(x), torch.cat(expected, dim=-1))


def test_every_part_of_a_is_drawn_as_a_linear_layer_draws_and_b_is_zero() -> None:
    layer = LoRALinear(Linear(400, 30, parts=(10, 10, 10)), rank=50, alpha=1.0)
    for part in layer.A:
        assert part.abs().max().item() == pytest.approx(1 / math.sqrt(400), rel=0.01)
        assert part.std().item() == pytest.approx(1 / math.sqrt(3 * 400), rel=0.03)
    assert not torch.equal(layer.A[0], layer.A[1])
    assert not layer.B.any()


def test_rank_16_on_the_124m_classifier_trains_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = GPTClassifier(GPTModel(gpt2_config("124M", 50257, 1024)), n_classes=2, position="last")
    assert parameter_count(model) == 124_441_346
    apply_lora(model, LoRAParams(rank=16, alpha=16.0, layers="all"), seed=0)
    assert parameter_count(model, trainable_only=True) == 2_666_528
    assert parameter_count(model) == 124_441_346 + 2_666_528


# Applying


@torch.no_grad()
def test_at_first_nothing_changes() -> None:
    plain = build_model(TINY, seed=0)(TOKEN_IDS)
    assert torch.equal(with_lora(build_model(TINY, seed=0))(TOKEN_IDS), plain)


@pytest.mark.parametrize(
    ("layers", "in_blocks", "outside"),
    [
        ("attention", ATTENTION, set()),
        ("feed_forward", FEED_FORWARD, set()),
        ("blocks", ATTENTION | FEED_FORWARD, set()),
        ("all", ATTENTION | FEED_FORWARD, {"head"}),
    ],
)
def test_each_choice_of_layers_touches_those_and_no_others(layers: str, in_blocks: set, outside: set) -> None:
    params = LoRAParams(rank=3, alpha=0.5, layers=layers)  # type: ignore[arg-type]
    paths = {f"blocks.{block}.{name}" for block in range(2) for name in in_blocks}
    assert adapted(with_lora(build_model(TINY, seed=0), params)) == paths | outside
    assert adapted(with_lora(classifier(), params)) == {f"backbone.{path}" for path in paths} | outside


def test_only_the_updates_are_trainable() -> None:
    model = with_lora(build_model(TINY, seed=0))
    trainable = {path for path, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {f"{path}.{name}" for path in adapted(model) for name in "AB"}


@pytest.mark.parametrize("layers", ["all", "blocks"])
def test_a_tied_head_is_left_alone(layers: str) -> None:
    params = LoRAParams(rank=3, alpha=0.5, layers=layers)  # type: ignore[arg-type]
    model = with_lora(build_model(TINY.model_copy(update={"tied_head": True}), seed=0), params)
    assert model.head.weight is model.token_embedding.weight
    embedding = model.token_embedding.weight.clone()
    randomise_updates(model)
    merge_lora(model)
    assert torch.equal(model.token_embedding.weight, embedding)
    assert "head" not in adapted(model)


def test_updates_come_from_the_seed_alone_and_the_global_stream_stays() -> None:
    before = torch.get_rng_state()
    states = []
    for seed in (0, 0, 1):
        model = build_model(TINY, seed=0)
        apply_lora(model, ALL, seed)
        states.append(adapter_state(model))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(states[0][path], states[1][path]) for path in states[0])
    assert not any(torch.equal(states[0][path], states[2][path]) for path in states[0] if path.endswith("A"))


def test_training_moves_both_matrices_and_leaves_every_base_weight_bit_identical() -> None:
    model = with_lora(classifier())
    before = {path: tensor.clone() for path, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):  # in the first step B is zero, so A has no gradient
        optimizer.zero_grad()
        F.cross_entropy(model(TOKEN_IDS, torch.tensor([8])), torch.tensor([1])).backward()
        optimizer.step()
    moved = {path for path, tensor in model.state_dict().items() if not torch.equal(tensor, before[path])}
    assert moved == set(adapter_state(model)) - {"alpha"}


# Saving and merging


def test_the_adapter_holds_the_low_rank_matrices_alpha_and_nothing_else() -> None:
    model = with_lora(build_model(TINY, seed=0), LoRAParams(rank=3, alpha=0.1, layers="all"))
    state = adapter_state(model)
    assert state.pop("alpha").item() == 0.1
    assert state.keys() == {path for path in model.state_dict() if path.endswith((".A", ".B"))}
    assert {tensor.shape for path, tensor in state.items() if "blocks.0.attention.qkv" in path} == {
        (3, 3, 8),
        (24, 3),
    }
    assert not any(tensor.requires_grad for tensor in state.values())


@torch.no_grad()
def test_an_adapter_put_on_a_fresh_base_gives_the_same_logits() -> None:
    model = with_lora(build_model(TINY, seed=0))
    randomise_updates(model)
    fresh = with_lora(build_model(TINY, seed=0))
    assert fresh.load_state_dict(adapter_state(model), strict=False).unexpected_keys == ["alpha"]
    assert torch.equal(fresh(TOKEN_IDS), model(TOKEN_IDS))


def merged_and_unmerged(model: nn.Module, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    randomise_updates(with_lora(model, LoRAParams(rank=3, alpha=0.05, layers="all")))
    unmerged = model(*inputs)
    merge_lora(model)
    return model(*inputs), unmerged


@torch.no_grad()
@pytest.mark.parametrize("tied_head", [False, True])
def test_merged_and_unmerged_logits_agree(tied_head: bool) -> None:
    model = build_model(TINY.model_copy(update={"tied_head": tied_head}), seed=0)
    plain = model(TOKEN_IDS)
    merged, unmerged = merged_and_unmerged(model, TOKEN_IDS)
    torch.testing.assert_close(merged, unmerged, atol=1e-5, rtol=0)
    assert (merged - plain).abs().max() > 0.1


@torch.no_grad()
def test_merged_and_unmerged_classifiers_agree() -> None:
    merged, unmerged = merged_and_unmerged(classifier(), TOKEN_IDS, torch.tensor([8]))
    torch.testing.assert_close(merged, unmerged, atol=1e-5, rtol=0)


def test_merging_restores_plain_layers_under_their_old_names() -> None:
    plain, model = build_model(TINY, seed=0), with_lora(build_model(TINY, seed=0))
    adapter, merged = adapter_state(model), merge_lora(model)
    assert merged.keys() == adapter.keys() and all(torch.equal(merged[name], adapter[name]) for name in adapter)
    assert [*model.state_dict()] == [*plain.state_dict()]
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    assert not adapter_state(model)


@pytest.mark.parametrize(("key", "value"), [("rank", 0), ("rank", 1.5), ("alpha", 0.0), ("layers", "norms"), ("r", 4)])
def test_a_wrong_parameter_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ValidationError) as error:
        LoRAParams(**{"rank": 4, "alpha": 4.0, "layers": "all", key: value})
    assert [problem["loc"] for problem in error.value.errors()] == [(key,)]
