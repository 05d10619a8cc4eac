"""The operations of precision `exact`: those for a CPU against plain torch, and against torch's own gradients."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis.strategies as st
import mpmath
import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.nn import functional as F

from scratchlm.arithmetic import autograd, fused, reference
from scratchlm.arithmetic.autograd import collect_gradients
from scratchlm.arithmetic.elementary import exp, log, sin_cos
from scratchlm.arithmetic.functions import (
    clip_gradients,
    cross_entropy,
    embedding,
    gelu,
    layer_norm,
    linear,
    matmul,
    repeat_heads,
    rms_norm,
    running_total,
    scaled_dot_product_attention,
    softmax,
    swiglu,
    total,
)
from scratchlm.arithmetic.mode import exact_arithmetic, use_exact
from scratchlm.arithmetic.sequences import begin_forward, summed_items
from scratchlm.training.optimizer import AdamW, ExactAdamW, power

CU_SEQLENS = [0, 3, 4, 17, 40]


@pytest.fixture(autouse=True, params=[1, 3])
def exact(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("scratchlm.arithmetic.sharing.WORTH_A_THREAD", 1)
    use_exact(True, request.param)
    yield
    use_exact(False)


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def padded_rows(n: int, width: int) -> Tensor:
    """Rows of which some are zero, as the gradient of padding is."""
    rows = draw(n, width, seed=5)
    rows[[2, 9, 39]] = 0.0
    return rows


def collected(module: Any, name: str, shape: tuple[int, ...], *arguments: Any) -> Tensor:
    found = draw(*shape, seed=9).double()
    getattr(module, name)(found, *arguments)
    return found


x, g = draw(40, 24, scale=3.0), padded_rows(40, 31)
weight, bias = draw(31, 24, seed=1), draw(31, seed=2)
q, k, v, above = (draw(2, 3, 11, 8, seed=n) for n in range(4))
n_visible, factors = torch.arange(1, 12)[None], (draw(2, 3, 11, 11, seed=7) > -1).float() * 1.25
ids = torch.randint(13, (40,), generator=torch.Generator().manual_seed(3))
logits, targets = draw(40, 13, seed=4, scale=4.0), torch.where(ids == 5, -100, ids)
probabilities = reference.attention(q, k, v, n_visible, factors)[1]
rows_and_columns = (torch.arange(40) * 7, 24, (123456789012345678, 3), 0.3)

CASES: dict[str, Callable[[Any], Any]] = {
    "linear": lambda m: m.linear(x, weight, bias),
    "linear without bias": lambda m: m.linear(x, weight, None),
    "long linear": lambda m: m.linear(draw(3, 9000), draw(4, 9000, seed=1), draw(4)),
    "input gradient": lambda m: m.linear_input_gradient(g, weight),
    "long input gradient": lambda m: m.linear_input_gradient(draw(3, 9000), draw(9000, 5, seed=1)),
    "weight gradients": lambda m: collected(m, "add_weight_gradients", (31, 24), g, x, CU_SEQLENS),
    "weight gradients of a long sequence": lambda m: collected(
        m, "add_weight_gradients", (3, 4), draw(9000, 3), draw(9000, 4, seed=1), [0, 5, 8990, 9000]
    ),
    "weight gradients of many rows": lambda m: collected(
        m, "add_weight_gradients", (2100, 3), draw(40, 2100), draw(40, 3, seed=1), CU_SEQLENS
    ),
    "column sums": lambda m: collected(m, "add_column_sums", (31,), g, CU_SEQLENS),
    "rows by id": lambda m: collected(m, "add_rows", (13, 31), ids, g, CU_SEQLENS),
    "layer norm": lambda m: m.layer_norm(x, draw(24), draw(24, seed=1)),
    "layer norm gradients": lambda m: m.layer_norm_gradients(draw(40, 24, seed=8), x, draw(24)),
    "rms norm": lambda m: m.rms_norm(x, draw(24)),
    "rms norm gradients": lambda m: m.rms_norm_gradients(draw(40, 24, seed=8), x, draw(24)),
    "rms norm with its own epsilon": lambda m: m.rms_norm(x, draw(24), 0.3),
    "its gradients": lambda m: m.rms_norm_gradients(draw(40, 24, seed=8), x, draw(24), 0.3),
    "swiglu": lambda m: m.swiglu(draw(40, 24, scale=30.0)),
    "swiglu gradient": lambda m: m.swiglu_gradient(draw(40, 12, seed=1), draw(40, 24, scale=30.0)),
    "gelu": lambda m: m.gelu(draw(40, 24, scale=30.0)),
    "gelu gradient": lambda m: m.gelu_gradient(draw(40, 24, seed=1), draw(40, 24, scale=30.0)),
    "attention": lambda m: m.attention(q, k, v, n_visible, None),
    "attention with dropout": lambda m: m.attention(q, k, v, n_visible, factors),
    "attention of one query": lambda m: m.attention(q[:, :, :1], k, v, torch.tensor([[4], [11]]), None),
    "attention of one query to many keys": lambda m: m.attention(
        q[:, :, :1], draw(2, 3, 150, 8, seed=4), draw(2, 3, 150, 8, seed=5), torch.tensor([[150], [65]]), None
    ),
    "attention gradients": lambda m: m.attention_gradients(above, (q, k, v), (probabilities, n_visible), None),
    "with dropout": lambda m: m.attention_gradients(above, (q, k, v), (probabilities, n_visible), factors),
    "cross-entropy": lambda m: m.cross_entropy(logits, targets),
    "cross-entropy gradient": lambda m: m.cross_entropy_gradient(draw(40, seed=6), logits, targets),
    "rounded sum": lambda m: m.rounded_sum([draw(5, 7).double() / 3, draw(5, 7, seed=1).double() / 7]),
    "rounded sum of one": lambda m: m.rounded_sum([draw(5, 7).double() / 3]),
    "dropout": lambda m: m.dropout_factors(*rows_and_columns),
    "sum of squares": lambda m: torch.tensor(m.sum_of_squares(draw(700, 700, scale=1e-20)), dtype=torch.float64),
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return all(same(left, right) for left, right in zip(a, b, strict=True))
    return a.dtype == b.dtype and torch.equal(a.nan_to_num(12345.0), b.nan_to_num(12345.0))


@pytest.mark.parametrize("name", CASES)
def test_the_form_for_a_cpu_has_the_bits_of_plain_torch(name: str) -> None:
    assert same(CASES[name](fused), CASES[name](reference))


def test_the_packed_form_has_the_bits_of_linear() -> None:
    for n_rows in (1, 3, 4, 7, 16):
        found = fused.packed_linear(x[:n_rows], fused.pack(weight), bias)
        assert torch.equal(found, reference.linear(x[:n_rows], weight, bias))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("module", [fused, reference])
def test_infinity_and_nan_are_passed_on(module: Any, bad: float) -> None:
    broken = x.clone()
    broken[1, 2] = bad
    norms = (module.layer_norm(broken, draw(24), draw(24)), module.rms_norm(broken, draw(24)))
    for found in (module.linear(broken, weight, bias), *norms):
        assert found[1].isnan().all() and found[2:].isfinite().all()
    assert module.linear_input_gradient(g, torch.full_like(weight, bad)).isnan().all()
    for part in module.add_weight_gradients, module.add_column_sums:
        into = torch.zeros(31, 24) if part is module.add_weight_gradients else torch.zeros(24)
        part(into.double(), *([g, broken] if into.dim() == 2 else [broken]), CU_SEQLENS)
    assert not module.cross_entropy(broken, torch.full((40,), 2)).isfinite()[1]
    value = v.clone()
    value[0, 0, 3, 0] = bad
    assert module.attention(q, k, value, n_visible, None)[0][0, 0, 3:].isnan().all()
    for keys, values in ((k, value), (value, v)):
        once = module.attention(q[:, :, :1], keys, values, torch.tensor([[11]]), None)[0]
        assert once[0, 0].isnan().any() and once[0, 1:].isfinite().all()


@given(seed=st.integers(0, 10**6), exponent=st.integers(-30, 15), n=st.integers(1, 40), width=st.integers(1, 70))
def test_both_forms_agree_at_every_scale(seed: int, exponent: int, n: int, width: int) -> None:
    a, b = draw(n, width, seed=seed, scale=10.0**exponent), draw(5, width, seed=seed + 1)
    assert same(fused.linear(a, b, None), reference.linear(a, b, None))
    assert same(fused.layer_norm(a, b[0], b[1]), reference.layer_norm(a, b[0], b[1]))
    assert same(fused.rms_norm(a, b[0]), reference.rms_norm(a, b[0]))
    assert same(fused.gelu(a), reference.gelu(a))
    pairs = torch.cat((a, a.flip(0)), dim=1)
    assert same(fused.swiglu(pairs), reference.swiglu(pairs))


def test_adamw_and_clipping_have_the_same_bits_in_both_forms() -> None:
    found = []
    for module in (fused, reference):
        state = (draw(7, 9), draw(7, 9, seed=1, scale=1e-3), draw(7, 9, seed=2).square())
        module.adamw(state, draw(7, 9, seed=3), 0.999, (0.9, 0.98), (1e-3, 1.2, 1e-8))
        module.scale(state[0], 0.37)
        found.append(state)
    assert same(*found)


def test_exp_and_log_are_those_of_mathematics() -> None:
    values = torch.cat([draw(300, scale=20.0), torch.tensor([0.0, -0.0, 88.0, -88.0])]).double()
    for argument, found in zip(values.tolist(), exp(values).tolist(), strict=True):
        assert found == pytest.approx(float(mpmath.exp(argument)), rel=1e-11)
    for argument, found in zip(values.exp().tolist(), log(values.exp()).tolist(), strict=True):
        assert found == pytest.approx(float(mpmath.log(argument)), rel=1e-11, abs=1e-15)


def test_sine_and_cosine_are_those_of_mathematics() -> None:
    quarters = torch.arange(-9, 10).double() * (math.pi / 2)
    values = torch.cat([draw(300, scale=1000.0).double(), quarters, quarters + 1e-9, torch.tensor([-1e6, 999_999.9])])
    for argument, sine, cosine in zip(values.tolist(), *(found.tolist() for found in sin_cos(values)), strict=True):
        assert sine == pytest.approx(float(mpmath.sin(argument)), rel=1e-11, abs=1e-15)
        assert cosine == pytest.approx(float(mpmath.cos(argument)), rel=1e-11, abs=1e-15)


def test_every_operation_is_torchs_up_to_rounding_and_so_is_every_gradient() -> None:
    torch_and_ours: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor]]] = {
        "linear": (F.linear, linear, [x, weight, bias]),
        "matmul": (torch.matmul, matmul, [draw(3, 5, 6), draw(3, 6, 4)]),
        "gelu": (lambda a: F.gelu(a, approximate="tanh"), gelu, [x]),
        "swiglu": (lambda a: F.silu(a[:, :12]) * a[:, 12:], swiglu, [x]),
        "rms norm": (lambda a, s: F.rms_norm(a, (24,), s, eps=0.3), lambda a, s: rms_norm(a, s, 0.3), [x, draw(24)]),
        "repeated heads": (lambda a: a.repeat_interleave(3, 1), lambda a: repeat_heads(a, 3), [q]),
        "softmax": (lambda a: a.softmax(-1), softmax, [x]),
        "total": (lambda a: a.sum(1), lambda a: total(a, 1), [x]),
        "layer norm": (lambda a, s, b: F.layer_norm(a, (24,), s, b), layer_norm, [x, draw(24), draw(24, seed=1)]),
        "embedding": (lambda w: F.embedding(ids, w), lambda w: embedding(ids, w), [draw(13, 6)]),
        "cross-entropy": (
            lambda z: F.cross_entropy(z, targets, reduction="sum"), lambda z: cross_entropy(z, targets, "sum"),
            [logits],
        ),
        "mean cross-entropy": (
            lambda z: F.cross_entropy(z, targets), lambda z: cross_entropy(z, targets, "mean"), [logits],
        ),
        "attention": (
            lambda *a: F.scaled_dot_product_attention(*a, is_causal=True),
            lambda *a: scaled_dot_product_attention(*a, None, 0.0, causal=True), [q, k, v],
        ),
    }  # fmt: skip
    for name, (theirs, ours, operands) in torch_and_ours.items():
        found = []
        for function in (theirs, ours):
            leaves = torch.nn.ParameterList(torch.nn.Parameter(operand.clone()) for operand in operands)
            result = function(*leaves)
            (result * draw(*result.shape, 1, seed=11).squeeze(-1)).sum().backward()
            collect_gradients(leaves)
            found.append([result.detach(), *(leaf.grad for leaf in leaves)])
        for a, b in zip(*found, strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=2e-5), name


def test_running_totals_are_exact_and_probabilities_stay_float64() -> None:
    probabilities = softmax(logits.double())
    assert probabilities.dtype == torch.float64
    assert torch.allclose(running_total(probabilities)[:, -1], torch.ones(40, dtype=torch.float64), atol=1e-9)


def test_dropout_keeps_its_share_and_scales_it() -> None:
    kept = reference.dropout_factors(torch.arange(500), 400, (7, 0), 0.3)
    assert set(kept.unique().tolist()) == {0.0, torch.tensor(1 / 0.7).item()}
    assert (kept > 0).double().mean().item() == pytest.approx(0.7, abs=0.005)
    other_call = reference.dropout_factors(torch.arange(500), 400, (7, 1), 0.3)
    assert 0.4 < (kept == other_call).double().mean() < 0.7


def test_an_optimizer_step_is_torchs_up_to_rounding() -> None:
    found = []
    for kind in (AdamW, ExactAdamW):
        parameter = torch.nn.Parameter(draw(5, 6))
        optimizer = kind([{"params": [parameter], "weight_decay": 0.1}], 1e-2, (0.9, 0.98))
        for step in range(5):
            parameter.grad = draw(5, 6, seed=step)
            clip_gradients([parameter], 1.0)
            optimizer.step()
        found.append(parameter.detach())
    assert torch.allclose(*found, rtol=1e-5, atol=1e-6)
    assert power(0.98, 1000) == pytest.approx(0.98**1000, rel=1e-12)


def test_nothing_of_a_finished_pass_is_left_to_the_next() -> None:
    begin_forward(5, 0)
    first = autograd.dropout(x, 0.5)
    begin_forward(5, 0)
    assert torch.equal(first, autograd.dropout(x, 0.5))
    assert not torch.equal(first, autograd.dropout(x, 0.5))
    with exact_arithmetic():
        total(torch.ones(3))
    assert summed_items() is not None
    begin_forward(5, 0)
    assert summed_items() is None  # a loss that sums nothing has none
    assert math.isclose(float(total(torch.ones(3), None)), 3.0)
