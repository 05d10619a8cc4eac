import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from scratchlm.data.tokenizer import IGNORE_INDEX
from scratchlm.formats.huggingface import huggingface_config
from scratchlm.formats.names import tensor_names
from scratchlm.model.gpt import GPTModel
from scratchlm.run.errors import UserError
from scratchlm.run.files import read_table, write_table
from scratchlm.tasks.language_model import (
    LOSS_SCHEMA,
    Losses,
    LossMeter,
    bits_per_byte,
    example_id,
    loss_rows,
    perplexity,
)
from scratchlm.training import losses

Build = Callable[..., GPTModel]

INPUTS = np.random.default_rng(1).integers(11, size=(7, 8))
TARGETS = np.random.default_rng(2).integers(11, size=(7, 8))
MASKED = TARGETS.copy()
MASKED[0, 3:] = IGNORE_INDEX
MASKED[2, :] = IGNORE_INDEX
MASKED[5, [0, 7]] = IGNORE_INDEX


def losses_of(model: GPTModel, inputs: np.ndarray, targets: np.ndarray, batch_size: int = 3) -> Losses:
    return LossMeter().measure(model, lambda i: (inputs[i], targets[i]), np.arange(len(inputs)), batch_size)


def test_a_model_that_knows_nothing_is_in_doubt_among_all_tokens(tiny_gpt: Build) -> None:
    model = tiny_gpt()
    with torch.no_grad():
        model.head.weight.zero_()
    losses = losses_of(model, INPUTS, TARGETS)
    assert losses.counts.tolist() == [8] * 7
    assert losses.sums == pytest.approx([8 * math.log(11)] * 7)
    assert perplexity(losses.mean) == pytest.approx(11)


def test_every_token_weighs_the_same_whatever_row_it_is_in() -> None:
    assert Losses(np.array([10.0, 2.0]), np.array([1, 5])).mean == 2.0


def test_the_mean_is_of_the_exact_sum_whatever_the_order() -> None:
    sums, counts = np.random.default_rng(6).lognormal(3, 4, size=999), np.full(999, 7)
    exact = sum(map(Fraction, sums.tolist()))
    assert Losses(sums, counts).mean == Losses(sums[::-1], counts).mean == float(exact) / (7 * 999)


def test_perplexity_and_bits_per_byte_by_hand() -> None:
    assert perplexity(0.0) == 1.0
    assert perplexity(math.log(50257)) == pytest.approx(50257)
    with pytest.raises(UserError, match="^a loss of 800 nats per token has no perplexity: training diverged; lower"):
        perplexity(800.0)
    # 2 ln 2 nats are 2 bits per token; 300 tokens over 1200 bytes: half a bit per byte
    assert bits_per_byte(2 * math.log(2), 300, 1200) == pytest.approx(0.5)


def test_each_rows_sum_is_torchs_cross_entropy(tiny_gpt: Build) -> None:
    model = tiny_gpt().eval()
    losses = losses_of(model, INPUTS, MASKED)
    with torch.no_grad():
        logits = model(torch.from_numpy(INPUTS))
    for row in range(7):
        expected = F.cross_entropy(logits[row], torch.from_numpy(MASKED[row]), reduction="sum")
        assert losses.sums[row] == pytest.approx(expected.item(), rel=1e-6)
    assert losses.counts.tolist() == [3, 8, 0, 8, 8, 6, 8]
    assert losses.sums[2] == 0
    whole = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(MASKED).flatten(), ignore_index=IGNORE_INDEX)
    assert losses.mean == pytest.approx(whole.item(), rel=1e-6)


def test_the_mean_is_the_loss_that_transformers_reports(tiny_gpt: Build) -> None:
    ours = tiny_gpt(tied_head=True, initialisation="gpt2")
    theirs = GPT2LMHeadModel(GPT2Config(**huggingface_config(ours.config, end_token_id=0))).eval()
    weights = ours.state_dict()
    named = {
        f"transformer.{name.huggingface}": weights[name.ours].T if name.linear else weights[name.ours]
        for name in tensor_names(ours.config.n_layers)
    }
    theirs.load_state_dict(named | {"lm_head.weight": weights["head.weight"]})
    sequence = np.random.default_rng(3).integers(11, size=(4, 8))
    losses = losses_of(ours, sequence[:, :-1], sequence[:, 1:])
    with torch.no_grad():
        expected = theirs(torch.from_numpy(sequence), labels=torch.from_numpy(sequence)).loss
    assert losses.mean == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 100])
def test_the_batch_size_does_not_change_a_rows_loss(batch_size: int, tiny_gpt: Build) -> None:
    model = tiny_gpt()
    one, other = losses_of(model, INPUTS, MASKED, 3), losses_of(model, INPUTS, MASKED, batch_size)
    np.testing.assert_allclose(other.sums, one.sums, atol=1e-6 * 8)
    assert other.counts.tolist() == one.counts.tolist()
    assert other.mean == pytest.approx(one.mean, abs=1e-6)


def test_logits_made_block_by_block_give_the_same_losses(tiny_gpt: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_gpt()
    whole = losses_of(model, INPUTS, MASKED)
    for numbers in (1, 5 * 11):
        monkeypatch.setattr(losses, "LOGITS_AT_ONCE", numbers)
        np.testing.assert_allclose(losses_of(model, INPUTS, MASKED).sums, whole.sums, rtol=1e-6)


def test_a_batch_without_any_scored_token_counts_nothing(tiny_gpt: Build) -> None:
    nothing = np.full_like(TARGETS, IGNORE_INDEX)
    losses = losses_of(tiny_gpt(), INPUTS, nothing)
    assert losses.sums.tolist() == [0.0] * 7 and losses.counts.tolist() == [0] * 7
    with pytest.raises(UserError, match="^no token is scored, so there is no mean loss; "):
        _ = losses.mean


@pytest.mark.parametrize("training", [True, False])
def test_measuring_draws_nothing_drops_nothing_and_leaves_the_mode(training: bool, tiny_gpt: Build) -> None:
    model = tiny_gpt(dropout=0.5).train(training)
    torch.manual_seed(9)
    before = torch.random.get_rng_state()
    first, second = losses_of(model, INPUTS, TARGETS), losses_of(model, INPUTS, TARGETS)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.training == training
    assert np.array_equal(first.sums, second.sums)
    assert np.array_equal(first.sums, losses_of(tiny_gpt(), INPUTS, TARGETS).sums)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_each_example_becomes_one_row_of_the_schema(tmp_path: Path) -> None:
    rows = loss_rows(["one", "two"], Losses(np.array([1.5, 2.5]), np.array([8, 7])))
    assert rows == [
        {"id": "one", "loss_nats": 1.5, "scored_tokens": 8},
        {"id": "two", "loss_nats": 2.5, "scored_tokens": 7},
    ]
    write_table(tmp_path / "losses.parquet", rows, LOSS_SCHEMA)
    assert read_table(tmp_path / "losses.parquet") == rows


def test_an_id_ends_in_eight_digits_of_its_contents_hash() -> None:
    # sha256 of "abc": FIPS 180-4, the standard's own example
    assert example_id("val-00000", b"abc") == "val-00000-ba7816bf"
