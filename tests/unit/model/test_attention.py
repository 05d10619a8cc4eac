"""Attention: by hand, rung against rung, against the book's package and torch's kernels, and as properties."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llms_from_scratch import ch03
from torch import Tensor, nn
from torch.nn import functional as F

from scratchlm.model import attention as attention_module
from scratchlm.model import cache as cache_module
from scratchlm.model.attention import (
    CausalAttention,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
    SelfAttention,
    causal_mask,
    eager_attention,
    self_attention,
)
from scratchlm.model.cache import KVCache
from scratchlm.model.config import GPTConfig

IMPLEMENTATIONS = ["eager", "sdpa"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def multi_head(implementation: str, **changes: Any) -> MultiHeadAttention:
    """By default with two heads over eight channels. Raises like GPTConfig."""
    values = {
        "vocab_size": 1, "context_length": 64, "n_layers": 1, "n_heads": 2, "emb_dim": 8, "dropout": 0.0,
        "qkv_bias": True, "tied_head": False, "initialisation": "torch", "attention": implementation,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return MultiHeadAttention(GPTConfig.model_validate(values | changes))


def copy_qkv(fused: MultiHeadAttention, heads: list[nn.Module]) -> None:
    """Give the i-th head of separate layers the i-th slice of each part of the fused projection."""
    for name, weight, bias in zip(
        ["query", "key", "value"], fused.qkv.weight.chunk(3), fused.qkv.bias.chunk(3), strict=True
    ):
        for head, head_weight, head_bias in zip(heads, weight.chunk(len(heads)), bias.chunk(len(heads)), strict=True):
            getattr(head, name).load_state_dict({"weight": head_weight, "bias": head_bias})


# By hand


def test_weightless_attention_averages_by_the_softmax_of_dot_products() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, math.log(3)]])
    # scores: [[1, 0], [0, ln(3)^2]]
    first, second = math.e / (math.e + 1), 1 / (1 + math.exp(math.log(3) ** 2))
    expected = [[first, (1 - first) * math.log(3)], [second, (1 - second) * math.log(3)]]
    torch.testing.assert_close(self_attention(x), torch.tensor(expected))


def test_scores_are_divided_by_the_root_of_the_head_width() -> None:
    query, key = torch.full((1, 4), 1.0), torch.tensor([[math.log(3) / 2] * 4, [0.0] * 4])
    value = torch.tensor([[1.0], [0.0]])
    # score of the first key: 4 * ln(3) / 2 / sqrt(4) = ln 3, so its weight is 3 / (3 + 1)
    torch.testing.assert_close(eager_attention(query, key, value), torch.tensor([[0.75]]))


def test_a_masked_key_has_no_weight_at_all() -> None:
    value = torch.tensor([[1.0], [torch.finfo(torch.float32).max]])
    mask = torch.tensor([[True, False]])
    assert eager_attention(torch.ones(1, 2), torch.ones(2, 2), value, mask).item() == 1.0


def test_the_causal_mask_shows_the_past_and_the_present() -> None:
    expected = [[True, False, False], [True, True, False], [True, True, True]]
    assert causal_mask(3, torch.device("cpu")).tolist() == expected


def test_with_equal_scores_causal_attention_is_the_running_mean() -> None:
    attention = CausalAttention(1, 1, dropout=0.0)
    for layer, weight in [(attention.query, 0.0), (attention.key, 0.0), (attention.value, 1.0)]:
        nn.init.constant_(layer.weight, weight)
    x = torch.tensor([[[2.0], [4.0], [9.0]]])
    torch.testing.assert_close(attention(x), torch.tensor([[[2.0], [3.0], [5.0]]]))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_dropout_zeroes_weights_and_scales_the_rest_only_in_training(implementation: str) -> None:
    attention = multi_head(implementation, n_heads=1, emb_dim=1, dropout=0.5)
    attention.load_state_dict(
        {
            "qkv.weight": torch.zeros(3, 1),
            "qkv.bias": torch.tensor([0.0, 0.0, 1.0]),  # every value is 1, every score 0
            "projection.weight": torch.ones(1, 1),
            "projection.bias": torch.zeros(1),
        }
    )
    x = torch.zeros(400, 1, 1)
    assert attention.eval()(x).unique().tolist() == [1.0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dropped = attention.train()(x)
    assert dropped.unique().tolist() == [0.0, 2.0]
    assert 0.4 < (dropped == 0).float().mean() < 0.6


# Each rung equals the next where they coincide


def test_self_attention_with_identity_projections_is_weightless_attention_of_scaled_queries() -> None:
    attention = SelfAttention(4, 4)
    for layer, factor in [(attention.query, 2.0), (attention.key, 1.0), (attention.value, 1.0)]:
        layer.weight = nn.Parameter(factor * torch.eye(4))  # the 2 undoes the division by sqrt(4)
    x = torch.randn(3, 5, 4, generator=seeded())
    torch.testing.assert_close(attention(x), self_attention(x))


def test_causal_attention_ends_where_self_attention_over_the_same_tokens_ends() -> None:
    plain, causal = SelfAttention(6, 4, qkv_bias=True), CausalAttention(6, 4, dropout=0.0, qkv_bias=True)
    causal.load_state_dict(plain.state_dict())
    x = torch.randn(2, 5, 6, generator=seeded())
    outputs = causal(x)
    for end in range(1, 6):
        torch.testing.assert_close(outputs[:, end - 1], plain(x[:, :end])[:, -1])


def test_one_head_in_the_wrapper_is_causal_attention() -> None:
    wrapper, single = MultiHeadAttentionWrapper(6, 4, 0.0, n_heads=1), CausalAttention(6, 4, 0.0)
    single.load_state_dict(wrapper.heads[0].state_dict())
    x = torch.randn(2, 5, 6, generator=seeded())
    assert torch.equal(wrapper(x), single(x))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("n_heads", [1, 2, 4])
def test_multi_head_attention_is_the_wrapper_followed_by_the_projection(implementation: str, n_heads: int) -> None:
    fused = multi_head(implementation, n_heads=n_heads)
    wrapper = MultiHeadAttentionWrapper(8, 8 // n_heads, 0.0, n_heads, qkv_bias=True)
    copy_qkv(fused, list(wrapper.heads))
    x = torch.randn(2, 5, 8, generator=seeded())
    torch.testing.assert_close(fused(x), fused.projection(wrapper(x)))


# Against the book's package and torch

BOOK_NAMES = {"query": "W_query", "key": "W_key", "value": "W_value"}


def book_state(module: nn.Module) -> dict[str, Tensor]:
    names = {path: path.split(".") for path in module.state_dict()}
    renamed = {path: ".".join(BOOK_NAMES.get(part, part) for part in parts) for path, parts in names.items()}
    return {renamed[path]: tensor for path, tensor in module.state_dict().items()}


def test_self_attention_equals_the_books() -> None:
    ours, book = SelfAttention(6, 4, qkv_bias=True), ch03.SelfAttention_v2(6, 4, qkv_bias=True)
    book.load_state_dict(book_state(ours))
    x = torch.randn(5, 6, generator=seeded())
    torch.testing.assert_close(ours(x), book(x))


def test_heads_side_by_side_equal_the_books_dropout_included() -> None:
    ours = MultiHeadAttentionWrapper(6, 4, 0.5, n_heads=3)
    book = ch03.MultiHeadAttentionWrapper(6, 4, context_length=9, dropout=0.5, num_heads=3)
    book.load_state_dict(book_state(ours), strict=False)  # the book keeps masks in its state
    x = torch.randn(2, 5, 6, generator=seeded())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        from_ours = ours(x)
        torch.manual_seed(7)
        torch.testing.assert_close(from_ours, book(x))


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_multi_head_attention_draws_and_computes_what_the_books_does_dropout_included(qkv_bias: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        ours = multi_head("eager", emb_dim=12, n_heads=3, dropout=0.3, qkv_bias=qkv_bias)
        torch.manual_seed(1)
        book = ch03.MultiHeadAttention(12, 12, context_length=7, dropout=0.3, num_heads=3, qkv_bias=qkv_bias)
        x = torch.randn(2, 7, 12, generator=seeded())
        torch.manual_seed(7)
        from_ours = ours(x)
        torch.manual_seed(7)
        torch.testing.assert_close(from_ours, book(x))


def test_multi_head_attention_equals_torchs_own() -> None:
    ours, reference = multi_head("eager"), nn.MultiheadAttention(8, 2, batch_first=True)
    reference.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.projection.weight,
            "out_proj.bias": ours.projection.bias,
        }
    )
    x = torch.randn(3, 6, 8, generator=seeded())
    hidden = ~causal_mask(6, x.device)
    torch.testing.assert_close(ours(x), reference(x, x, x, attn_mask=hidden, need_weights=False)[0])


# The two paths


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    n_new=st.integers(1, 9),
    n_before=st.integers(0, 9),
    n_heads=st.integers(1, 3),
    width=st.sampled_from([1, 4, 16]),
    seed=st.integers(0, 99),
)
def test_eager_attention_equals_torchs_kernel_under_any_mask(
    batch: int, n_new: int, n_before: int, n_heads: int, width: int, seed: int
) -> None:
    generator = seeded(seed)
    query = torch.randn(batch, n_heads, n_new, width, generator=generator)
    key, value = torch.randn(2, batch, n_heads, n_before + n_new, width, generator=generator)
    mask = torch.rand(batch, 1, n_new, n_before + n_new, generator=generator) < 0.5
    mask[..., 0] = True  # a query that sees nothing has no defined output
    for chosen in (None, mask):
        expected = F.scaled_dot_product_attention(query, key, value, chosen)
        torch.testing.assert_close(eager_attention(query, key, value, chosen), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(1, 1, 8), (2, 7, 8), (3, 64, 8)])
@pytest.mark.parametrize("n_heads", [1, 4])
def test_eager_and_sdpa_agree_without_a_mask(shape: tuple[int, int, int], n_heads: int) -> None:
    x = torch.randn(shape, generator=seeded())
    eager, sdpa = (multi_head(name, n_heads=n_heads)(x) for name in IMPLEMENTATIONS)
    torch.testing.assert_close(eager, sdpa, atol=1e-5, rtol=0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradients_are_right_in_double_precision(implementation: str) -> None:
    attention = multi_head(implementation, emb_dim=4).double()
    names = [name for name, _ in attention.named_parameters()]

    def output(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(attention, dict(zip(names, parameters, strict=True)), (x,))

    x = torch.randn(1, 3, 4, dtype=torch.float64, generator=seeded(), requires_grad=True)
    assert torch.autograd.gradcheck(output, (x, *attention.parameters()))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@settings(max_examples=15, deadline=None)
@given(n_tokens=st.integers(2, 8), data=st.data())
def test_a_changed_token_leaves_everything_before_it_as_it_was(
    implementation: str, n_tokens: int, data: st.DataObject
) -> None:
    attention = multi_head(implementation)
    x = torch.randn(1, n_tokens, 8, generator=seeded(n_tokens))
    place = data.draw(st.integers(1, n_tokens - 1))
    changed = x.clone()
    changed[:, place] += 1
    before, after = attention(x), attention(changed)
    assert torch.equal(before[:, :place], after[:, :place])
    assert (before[:, place:] != after[:, place:]).any(dim=-1).all()


# The cache


def one_layer_cache(n_rows: int, context_length: int) -> KVCache:
    return KVCache(n_layers=1, n_rows=n_rows, context_length=context_length)


def test_the_cache_stores_each_row_at_its_own_positions_and_has_as_many_slots_as_its_longest_row_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache_module, "CACHE_GROWTH", 2)
    cache = one_layer_cache(2, context_length=5)
    first, new = torch.tensor([[5.0], [6.0]]).view(2, 1, 1, 1), torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(2, 1, 2, 1)
    assert cache.advance(1, first.device).tolist() == [[0], [0]]
    keys, _, mask = cache.layers[0].extend(first, -first)
    assert (keys.squeeze().tolist(), mask.tolist()) == ([[5, 0], [6, 0]], [[[[True, False]]]] * 2)
    cache.lengths = [0, 1]  # as if the first row's token had been padding
    assert cache.advance(2, first.device).tolist() == [[0, 1], [1, 2]]
    keys, values, mask = cache.layers[0].extend(new, -new)
    assert keys.squeeze().tolist() == [[1, 2, 0, 0], [6, 3, 4, 0]]
    assert values.squeeze().tolist() == [[-1, -2, 0, 0], [-6, -3, -4, 0]]
    assert mask[1, 0].tolist() == [[True, True, False, False], [True, True, True, False]]
    cache.select([0])  # when the longer row has ended
    cache.lengths = [1]
    cache.advance(1, first.device)
    assert cache.layers[0].extend(first[:1], first[:1])[0].squeeze().tolist() == [1, 5]
    cache.lengths = [4]
    cache.advance(1, first.device)
    assert cache.layers[0].extend(first[:1], first[:1])[0].shape == (1, 1, 5, 1)  # never more than the context


@torch.no_grad()
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("chunks", [[6], [1, 1, 1, 1, 1, 1], [2, 3, 1]])
def test_a_cache_filled_piece_by_piece_gives_what_one_pass_gives(implementation: str, chunks: list[int]) -> None:
    attention, cache = multi_head(implementation), one_layer_cache(2, context_length=9)
    [layer] = cache.layers
    layer.keys, layer.values = torch.full((2, 2, 2, 9, 4), 1e4)  # what an unwritten slot holds must not count
    x, outputs = torch.randn(2, 6, 8, generator=seeded()), []
    for piece in x.split(chunks, dim=1):
        cache.advance(piece.shape[1], x.device)
        outputs.append(attention(piece, layer))
    torch.testing.assert_close(torch.cat(outputs, dim=1), attention(x), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rows_of_different_lengths_share_a_cache(implementation: str) -> None:
    attention, cache = multi_head(implementation), one_layer_cache(2, context_length=8)
    x, lengths = torch.randn(2, 4, 8, generator=seeded()), [3, 1]
    cache.advance(3, x.device)
    attention(x[:, :3], cache.layers[0])  # the second row's last two are padding
    cache.lengths = list(lengths)
    cache.advance(1, x.device)
    new = torch.stack([x[row, length] for row, length in enumerate(lengths)])[:, None]  # (B, 1, C)
    together = attention(new, cache.layers[0])
    for row, length in enumerate(lengths):
        alone = attention(x[row : row + 1, : length + 1])[:, -1:]
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_on_the_cpu_sdpa_takes_the_eager_form_for_short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, kernel = [], F.scaled_dot_product_attention

    def noted(query: Tensor, *rest: object, **options: object) -> Tensor:
        lengths.append(query.shape[2])
        return kernel(query, *rest, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    monkeypatch.setattr(attention_module, "EAGER_UP_TO", 4)
    for n_positions in (3, 4, 5):
        x = torch.randn(2, n_positions, 8, generator=seeded())
        torch.testing.assert_close(multi_head("sdpa")(x), multi_head("eager")(x))
    assert lengths == [5]
