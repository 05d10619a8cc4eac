"""The GPT: by hand, against the book's package and transformers, and as properties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llms_from_scratch import ch04
from torch import Tensor, nn
from torch.nn import functional as F

from scratchlm.model.cache import KVCache
from scratchlm.model.config import SIZES, GPTConfig, SizeName, gpt2_config
from scratchlm.model.gpt import GELU, FeedForward, GPTModel, LayerNorm, build_model, parameter_count

IMPLEMENTATIONS = ["eager", "sdpa"]
SHAPE = {
    "vocab_size": 11, "context_length": 8, "emb_dim": 8, "n_heads": 2, "n_layers": 2, "dropout": 0.0, "qkv_bias": True,
    "tied_head": False, "initialisation": "torch", "attention": "eager",
}  # fmt: skip


def tiny(**changes: object) -> GPTConfig:
    return GPTConfig.model_validate(SHAPE | changes)


TINY = tiny()


def tokens(*shape: int, vocab_size: int = TINY.vocab_size, seed: int = 0) -> Tensor:
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


# By hand


def test_layer_norm_gives_zero_mean_and_unit_biased_variance_then_scales_and_shifts() -> None:
    norm = LayerNorm(4)
    norm.load_state_dict({"scale": torch.full((4,), 2.0), "shift": torch.full((4,), 1.0)})
    # mean 5, biased variance (9 + 1 + 1 + 9) / 4 = 5
    expected = [1 + 2 * d / math.sqrt(5 + 1e-5) for d in (-3, -1, 1, 3)]
    torch.testing.assert_close(norm(torch.tensor([2.0, 4.0, 6.0, 8.0])), torch.tensor(expected))


def test_gelu_is_the_tanh_approximation() -> None:
    x = torch.tensor([-3.0, -0.5, 0.0, 1.0, 2.0])
    expected = [0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in x.tolist()]
    torch.testing.assert_close(GELU()(x), torch.tensor(expected))
    assert not torch.allclose(GELU()(x), F.gelu(x), atol=1e-5)  # the exact form differs by more than this


def test_a_block_adds_to_what_came_in() -> None:
    block = GPTModel(TINY).blocks[0]
    for layer in (block.attention.projection, block.feed_forward.projection):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    x = torch.randn(1, 3, 8)
    assert torch.equal(block(x), x)


def test_logits_of_a_model_without_blocks_effect_are_head_times_norm_of_summed_embeddings() -> None:
    model = GPTModel(tiny(n_layers=1, emb_dim=2, vocab_size=2, n_heads=1))
    with torch.no_grad():
        for layer in (model.blocks[0].attention.projection, model.blocks[0].feed_forward.projection):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        model.token_embedding.weight.copy_(torch.tensor([[0.0, 4.0], [1.0, 0.0]]))
        model.position_embedding.weight.zero_()[1] = torch.tensor([9.0, 0.0])
        model.head.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 5.0]]))
        # sums (0, 4) and (10, 0): of two channels, the norm makes -1 and 1 (up to eps)
        logits = model(torch.tensor([[0, 1]]))
    torch.testing.assert_close(logits, torch.tensor([[[-3.0, 5.0], [3.0, -5.0]]]), atol=1e-4, rtol=0)


# Against the book's package


BOOK_NAMES = {
    "token_embedding.": "tok_emb.",
    "position_embedding.": "pos_emb.",
    "head.": "out_head.",
    "blocks.": "trf_blocks.",
    "attention.projection.": "att.out_proj.",
    "feed_forward.expansion.": "ff.layers.0.",
    "feed_forward.projection.": "ff.layers.2.",
}


def book_model(config: GPTConfig) -> ch04.GPTModel:
    shape = config.model_dump(include={"vocab_size", "context_length", "emb_dim", "n_heads", "n_layers", "qkv_bias"})
    return ch04.GPTModel(shape | {"drop_rate": config.dropout})


def as_in_the_book(model: GPTModel) -> dict[str, Tensor]:
    state = {}
    for path, tensor in model.state_dict().items():
        for ours, book in BOOK_NAMES.items():
            path = path.replace(ours, book)
        if ".attention.qkv." in path:
            for name, part in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                state[path.replace("attention.qkv", f"att.W_{name}")] = part
        else:
            state[path] = tensor
    return state


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_the_same_seed_draws_the_books_parameters_one_by_one(qkv_bias: bool) -> None:
    config = tiny(qkv_bias=qkv_bias)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        ours, state_of_ours = as_in_the_book(GPTModel(config)), torch.get_rng_state()
        torch.manual_seed(123)
        book = dict(book_model(config).named_parameters())
        assert torch.equal(torch.get_rng_state(), state_of_ours)  # so what is drawn next is the same, too
    assert ours.keys() == book.keys()
    for path, parameter in book.items():
        assert torch.equal(ours[path], parameter), path


@pytest.mark.parametrize("training", [False, True])
def test_logits_equal_the_books_dropout_included(training: bool) -> None:
    config = tiny(dropout=0.2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        ours = GPTModel(config).train(training)
        torch.manual_seed(5)
        book = book_model(config).train(training)
        torch.manual_seed(6)
        from_ours = ours(tokens(3, 8))
        torch.manual_seed(6)
        torch.testing.assert_close(from_ours, book(tokens(3, 8)))


def test_the_feed_forward_layers_equal_the_books() -> None:
    ours, book = FeedForward(tiny(emb_dim=6)), ch04.FeedForward({"emb_dim": 6})
    book.load_state_dict(
        {
            path.replace("expansion", "layers.0").replace("projection", "layers.2"): t
            for path, t in ours.state_dict().items()
        }
    )
    x = torch.randn(2, 3, 6)
    torch.testing.assert_close(ours(x), book(x))


# The two attention paths


@pytest.mark.parametrize("shape", [(1, 1), (4, 3), (2, 8)])
def test_eager_and_sdpa_models_give_the_same_logits(shape: tuple[int, int]) -> None:
    eager, sdpa = (build_model(tiny(attention=name), seed=0) for name in IMPLEMENTATIONS)
    torch.testing.assert_close(eager(tokens(*shape)), sdpa(tokens(*shape)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("tied_head", [False, True])
def test_gradients_of_the_whole_model_are_right_in_double_precision(implementation: str, tied_head: bool) -> None:
    shape = {"vocab_size": 3, "context_length": 3, "emb_dim": 2, "n_layers": 1}
    model = build_model(tiny(**shape, attention=implementation, tied_head=tied_head), seed=0).double()
    names, parameters = zip(*model.named_parameters(), strict=True)
    token_ids = tokens(2, 3, vocab_size=3)

    def loss(*parameters: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (token_ids,))
        return F.cross_entropy(logits.flatten(0, 1), token_ids.flatten())

    assert torch.autograd.gradcheck(loss, parameters)


@torch.no_grad()
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@settings(max_examples=15, deadline=None)
@given(n_tokens=st.integers(2, 8), data=st.data())
def test_a_changed_token_changes_no_earlier_logits(implementation: str, n_tokens: int, data: st.DataObject) -> None:
    model = build_model(tiny(attention=implementation), seed=0)
    place = data.draw(st.integers(1, n_tokens - 1))
    token_ids = tokens(1, n_tokens, seed=n_tokens)
    changed = token_ids.clone()
    changed[:, place] = (changed[:, place] + 1) % TINY.vocab_size
    before, after = model(token_ids), model(changed)
    assert torch.equal(before[:, :place], after[:, :place])
    assert (before[:, place:] != after[:, place:]).any(dim=-1).all()


@torch.no_grad()
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_hidden_states_from_a_cache_are_those_of_one_pass(implementation: str) -> None:
    model = build_model(tiny(attention=implementation), seed=0)
    token_ids = tokens(2, 7)
    cache = KVCache(n_layers=2, n_rows=2, context_length=8)
    pieces = [model.hidden_states(token_ids[:, start:end], cache) for start, end in [(0, 3), (3, 4), (4, 7)]]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model.hidden_states(token_ids), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="9 tokens do not fit the model's context_length of 8"):
        model(tokens(2, 2), cache)


@torch.no_grad()
def test_next_logits_are_those_after_each_rows_own_end_and_fill_the_cache() -> None:
    model, cache = build_model(TINY, seed=0), KVCache(n_layers=2, n_rows=2, context_length=8)
    rows = [[1, 2, 3, 4], [5, 6]]
    expected = torch.cat([model(torch.tensor([row]))[:, -1] for row in rows])
    for found in (model.next_logits(rows), model.next_logits(rows, cache)):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert cache.lengths == [4, 2]
    expected = torch.cat([model(torch.tensor([[*row, 7]]))[:, -1] for row in rows])
    torch.testing.assert_close(model(torch.tensor([[7], [7]]), cache)[:, -1], expected, atol=1e-5, rtol=0)


# Limits, initial values, counts


def test_more_tokens_than_the_context_holds_are_refused_with_both_numbers() -> None:
    model = GPTModel(TINY)
    assert model(tokens(1, 8)).shape == (1, 8, 11)
    with pytest.raises(ValueError, match="9 tokens do not fit the model's context_length of 8"):
        model(tokens(1, 9))


@pytest.mark.parametrize("tied_head", [False, True])
def test_gpt2_initialisation_has_deviation_0_02_and_scales_what_ends_in_the_residual_stream(tied_head: bool) -> None:
    shape = {"emb_dim": 128, "n_heads": 4, "n_layers": 8, "vocab_size": 300, "context_length": 200}
    model = build_model(tiny(**shape, initialisation="gpt2", tied_head=tied_head), seed=0)
    for path, parameter in model.named_parameters():
        if path.endswith("scale"):
            assert torch.equal(parameter, torch.ones(128)), path
        elif path.endswith(("shift", "bias")):
            assert not parameter.any(), path
        else:
            expected = 0.02 / math.sqrt(16) if path.endswith("projection.weight") else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.03), path
            assert abs(parameter.mean().item()) < 5 * expected / math.sqrt(parameter.numel()), path


def test_torch_initialisation_is_what_torchs_layers_draw() -> None:
    model = build_model(tiny(emb_dim=256, n_heads=4, n_layers=1, vocab_size=500), seed=0)
    assert model.token_embedding.weight.std().item() == pytest.approx(1, rel=0.03)
    uniform = 1 / math.sqrt(256)  # kaiming_uniform with a = sqrt(5): between -1/sqrt(fan in) and 1/sqrt(fan in)
    for layer in (model.head, model.blocks[0].attention.qkv, model.blocks[0].feed_forward.expansion):
        assert layer.weight.abs().max().item() == pytest.approx(uniform, rel=0.01)
        assert layer.weight.std().item() == pytest.approx(uniform / math.sqrt(3), rel=0.03)


def test_building_a_model_draws_from_its_seed_alone_and_leaves_the_global_stream() -> None:
    before = torch.get_rng_state()
    first = build_model(TINY, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    again, other = build_model(TINY, seed=1), build_model(TINY, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)


def test_a_tied_head_is_the_token_embedding_and_counts_once() -> None:
    untied, tied = GPTModel(TINY), GPTModel(tiny(tied_head=True))
    assert tied.head.weight is tied.token_embedding.weight
    assert parameter_count(untied) - parameter_count(tied) == 11 * 8


def test_frozen_parameters_are_not_counted_as_trainable() -> None:
    model = GPTModel(TINY).requires_grad_(False)
    model.final_norm.requires_grad_(True)
    assert parameter_count(model, trainable_only=True) == 16


@pytest.mark.long
@pytest.mark.parametrize(
    ("size", "published"),
    [("124M", 124_439_808), ("355M", 354_823_168), ("774M", 774_030_080), ("1558M", 1_557_611_200)],
)
def test_gpt2_sizes_have_the_published_numbers_of_parameters(size: SizeName, published: int) -> None:
    with torch.device("meta"):
        model = GPTModel(gpt2_config(size, vocab_size=50257, context_length=1024))
    layers, width = SIZES[size].n_layers, SIZES[size].emb_dim
    assert parameter_count(model) == published
    # embeddings; per block 12 C² of weights, 13 C of biases and norms (9 C biases, 4 C norms); the final norm
    assert published == (50257 + 1024) * width + layers * (12 * width**2 + 13 * width) + 2 * width


@pytest.mark.parametrize(("tied_head", "expected"), [(False, 163_009_536), (True, 124_412_160)])
def test_the_books_124m_shape_has_the_books_numbers_of_parameters(tied_head: bool, expected: int) -> None:
    with torch.device("meta"):
        shape = {"vocab_size": 50257, "context_length": 1024, "emb_dim": 768, "n_heads": 12, "n_layers": 12}
        model = GPTModel(tiny(**shape, qkv_bias=False, tied_head=tied_head))
    assert parameter_count(model) == expected
