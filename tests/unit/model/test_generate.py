"""Decoding: sampling by hand and against transformers, generating against one row at a time without a cache."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats
from torch import Tensor, nn
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

from scratchlm.model.config import GPTConfig
from scratchlm.model.generate import (
    GREEDY,
    Generation,
    SamplingParams,
    Stopping,
    cut_at,
    generate,
    penalise_repetition,
    sample_tokens,
    stop_at,
    top_k_filter,
    top_p_filter,
)
from scratchlm.model.gpt import GPTModel, build_model

CONTEXT, VOCAB, END = 10, 29, 3
CONFIG = GPTConfig(
    vocab_size=VOCAB,
    context_length=CONTEXT,
    emb_dim=16,
    n_heads=2,
    n_layers=2,
    dropout=0.5,
    qkv_bias=True,
    tied_head=False,
    initialisation="torch",
    attention="eager",
)
SAMPLED = SamplingParams(temperature=1.3, top_k=20, top_p=0.95, repetition_penalty=1.1)
PLAIN = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0)
LOGITS = torch.tensor([[4.0, 1.0, 2.0, 1.0]]).log()  # probabilities 4/8, 1/8, 2/8, 1/8
INF = float("inf")


def model(attention: str = "eager") -> GPTModel:
    return build_model(CONFIG.model_copy(update={"attention": attention}), seed=0).eval()


def kept(logits: Tensor) -> list[int]:
    return logits[0].isfinite().nonzero().flatten().tolist()


def random_logits(seed: int = 0) -> Tensor:
    return 3 * torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(seed))


# Sampling, by hand


@pytest.mark.parametrize(
    ("k", "expected"),
    [(0, [0, 1, 2, 3]), (1, [0]), (2, [0, 2]), (3, [0, 1, 2, 3]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3])],
)
def test_top_k_keeps_the_k_largest_and_what_ties_with_the_kth(k: int, expected: list[int]) -> None:
    filtered = top_k_filter(LOGITS, k)
    assert kept(filtered) == expected
    assert torch.equal(filtered[:, expected], LOGITS[:, expected])


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0.01, [0]),
        (0.49, [0]),
        (0.51, [0, 2]),
        (0.74, [0, 2]),
        (0.76, [0, 1, 2]),
        (0.9, [0, 1, 2, 3]),
        (1.0, [0, 1, 2, 3]),
    ],
)
def test_top_p_keeps_the_fewest_tokens_that_reach_p(p: float, expected: list[int]) -> None:
    filtered = top_p_filter(LOGITS, p)
    assert kept(filtered) == expected
    assert torch.equal(filtered[:, expected], LOGITS[:, expected])


def test_the_penalty_divides_positive_and_multiplies_negative_logits_of_seen_tokens() -> None:
    logits, seen = torch.tensor([[3.0, -3.0, 3.0, -3.0]]), torch.tensor([[True, True, False, False]])
    assert penalise_repetition(logits, seen, 1.5).tolist() == [[2.0, -4.5, 3.0, -3.0]]


@pytest.mark.parametrize(
    ("draw", "token_id"), [(0.0, 0), (0.4999, 0), (0.5001, 1), (0.6249, 1), (0.6251, 2), (0.8751, 3), (1 - 2**-53, 3)]
)
def test_a_draw_is_looked_up_in_the_cumulative_distribution(draw: float, token_id: int) -> None:
    assert sample_tokens(LOGITS, PLAIN, torch.tensor([draw], dtype=torch.float64)).tolist() == [token_id]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "highest"),
    [
        (1.0, 0, 0.6, 2),  # 4/8 alone does not reach 0.6
        (0.5, 0, 0.6, 0),  # squared: 16/22 does; so temperature comes before top-p
        (1.0, 2, 0.6, 0),  # of the two kept, 4/6 does; so top-k comes before top-p
        (1.0, 2, 0.7, 2),
        (1.0, 1, 1.0, 0),
    ],
)
def test_temperature_comes_first_then_top_k_then_top_p(
    temperature: float, top_k: int, top_p: float, highest: int
) -> None:
    sampling = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=1.0)
    assert sample_tokens(LOGITS, sampling, torch.tensor([1 - 1e-9], dtype=torch.float64)).tolist() == [highest]


def test_temperature_zero_takes_the_largest_and_reads_no_draws() -> None:
    assert sample_tokens(random_logits(), GREEDY, None).tolist() == random_logits().argmax(-1).tolist()


@pytest.mark.parametrize(
    ("key", "value"),
    [("temperature", -0.1), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.1), ("repetition_penalty", 0.0), ("top_q", 1)],
)
def test_a_wrong_sampling_parameter_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ValidationError) as error:
        SamplingParams(**GREEDY.model_dump() | {key: value})
    assert [problem["loc"] for problem in error.value.errors()] == [(key,)]


# Sampling, against transformers and as properties


@pytest.mark.parametrize("k", [1, 2, 5, VOCAB - 1])
def test_top_k_equals_transformers(k: int) -> None:
    assert torch.equal(top_k_filter(random_logits(), k), TopKLogitsWarper(k)(None, random_logits()))


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.9, 0.99])
def test_top_p_equals_transformers(p: float) -> None:
    assert torch.equal(top_p_filter(random_logits(), p), TopPLogitsWarper(p)(None, random_logits()))


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.7])
def test_the_repetition_penalty_equals_transformers(penalty: float) -> None:
    token_ids = torch.randint(VOCAB, (6, 9), generator=torch.Generator().manual_seed(1))
    seen = torch.zeros(6, VOCAB, dtype=torch.bool).scatter(1, token_ids, True)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(token_ids, random_logits())
    assert torch.equal(penalise_repetition(random_logits(), seen, penalty), expected)


@settings(max_examples=50, deadline=None)
@given(logits=st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=8), p=st.floats(0.01, 0.99))
def test_the_kept_set_reaches_p_and_would_not_without_its_least_likely_token(logits: list[float], p: float) -> None:
    row = torch.tensor([logits])
    probabilities = row.double().softmax(-1)[0]
    chosen = probabilities[kept(top_p_filter(row, p))]
    assert chosen.sum() >= p - 1e-6
    assert chosen.sum() - chosen.min() <= p + 1e-6


@settings(max_examples=50, deadline=None)
@given(
    logits=st.lists(st.just(-INF) | st.floats(-50, 50, width=32), min_size=1, max_size=8),
    draw=st.sampled_from([0.0, 1 - 2**-53]) | st.floats(0, 1, exclude_max=True),
)
def test_an_impossible_token_is_never_chosen(logits: list[float], draw: float) -> None:
    row = torch.tensor([[*logits, 0.0, -INF]])
    [token_id] = sample_tokens(row, PLAIN, torch.tensor([draw], dtype=torch.float64)).tolist()
    assert row[0, token_id] > -INF


def test_frequencies_follow_the_softmax_at_the_temperature() -> None:
    n_draws = 20_000
    sampling = PLAIN.model_copy(update={"temperature": 2.0})
    draws = torch.rand(n_draws, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits = torch.tensor([2.0, -1.0, 0.5, 1.0, -3.0])
    counts = sample_tokens(logits.expand(n_draws, -1), sampling, draws).bincount(minlength=5)
    expected = n_draws * (logits.double() / 2).softmax(-1)
    assert stats.chisquare(counts.numpy(), expected.numpy()).pvalue > 0.01


def test_frequencies_of_generated_tokens_follow_the_models_distribution() -> None:
    n_rows, prompt = 3000, [5, 7]
    generations = generate(model(), [prompt] * n_rows, Stopping(1, None), sampling=PLAIN, seeds=range(n_rows))
    counts = torch.tensor([row.token_ids[0] for row in generations]).bincount(minlength=VOCAB)
    with torch.no_grad():
        expected = n_rows * model()(torch.tensor([prompt]))[0, -1].double().softmax(-1)
    assert stats.chisquare(counts.numpy(), expected.numpy()).pvalue > 0.01


# Generating, against one row at a time without a cache


@torch.no_grad()
def generate_plainly(
    model: GPTModel, prompt: list[int], max_new_tokens: int, sampling: SamplingParams, seed: int
) -> Generation:
    token_ids, generator = list(prompt), torch.Generator().manual_seed(seed)
    for _ in range(max_new_tokens):
        logits = model(torch.tensor([token_ids[-CONTEXT:]]))[:, -1]
        seen = torch.zeros(1, VOCAB, dtype=torch.bool).index_fill(1, torch.tensor(token_ids), True)
        logits = penalise_repetition(logits, seen, sampling.repetition_penalty)
        draw = torch.rand(1, generator=generator, dtype=torch.float64) if sampling.temperature else None
        token_id = sample_tokens(logits, sampling, draw).item()
        if token_id == END:
            return Generation(token_ids[len(prompt) :], finished=True)
        token_ids.append(token_id)
    return Generation(token_ids[len(prompt) :], finished=False)


def random_prompts(n_prompts: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(1, CONTEXT + 5, (n_prompts,), generator=generator).tolist()
    return [torch.randint(VOCAB, (length,), generator=generator).tolist() for length in lengths]


PROMPTS = random_prompts(200)
NEW_TOKENS = 8


@pytest.fixture(scope="module", params=[GREEDY, SAMPLED], ids=["greedy", "sampled"])
def plain_generations(request: pytest.FixtureRequest) -> tuple[SamplingParams, list[Generation]]:
    reference = model()
    return request.param, [
        generate_plainly(reference, prompt, NEW_TOKENS, request.param, seed) for seed, prompt in enumerate(PROMPTS)
    ]


@pytest.mark.long
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_cached_batches_give_the_tokens_that_single_rows_without_a_cache_give(
    attention: str, plain_generations: tuple[SamplingParams, list[Generation]]
) -> None:
    sampling, expected = plain_generations
    assert {len(row.token_ids) for row in expected if row.finished} > {0, 1, 2}  # rows end at many places
    assert sum(len(p) + len(e.token_ids) > CONTEXT for p, e in zip(PROMPTS, expected, strict=True)) > 50
    batched = []
    for start, end in [(0, 1), (1, 8), (8, 72), (72, 200)]:
        batched += generate(
            model(attention), PROMPTS[start:end], Stopping(NEW_TOKENS, END), sampling=sampling, seeds=range(start, end)
        )
    assert batched == expected


@settings(max_examples=12, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=13), min_size=1, max_size=5),
    end_token_id=st.none() | st.integers(0, VOCAB - 1),
    sampling=st.sampled_from([GREEDY, SAMPLED]),
)
def test_a_rows_result_does_not_depend_on_its_batch(
    prompts: list[list[int]], end_token_id: int | None, sampling: SamplingParams
) -> None:
    decoder = model()

    def run(rows: Sequence[list[int]], seeds: Sequence[int]) -> list[Generation]:
        return generate(decoder, rows, Stopping(8, end_token_id), sampling=sampling, seeds=seeds)

    seeds = range(len(prompts))
    alone = [row for prompt, seed in zip(prompts, seeds, strict=True) for row in run([prompt], [seed])]
    assert run(prompts, seeds) == alone
    assert run(prompts[::-1], seeds[::-1]) == alone[::-1]


@torch.no_grad()
def counting_model() -> GPTModel:
    """Prefers the token id after the last one: the text counts upwards."""
    decoder = build_model(CONFIG.model_copy(update={"emb_dim": 2 * VOCAB, "head_dim": VOCAB}), seed=0)
    for name, parameter in decoder.named_parameters():
        if "norm" not in name:
            parameter.zero_()  # the blocks add nothing to the embeddings
    decoder.token_embedding.weight.copy_(torch.eye(VOCAB, 2 * VOCAB))
    decoder.head.weight.copy_(torch.eye(VOCAB, 2 * VOCAB).roll(1, dims=0))
    return decoder


def test_a_token_inside_the_context_is_computed_once_and_a_finished_row_no_more() -> None:
    decoder, computed = counting_model(), []
    decoder.token_embedding.register_forward_pre_hook(lambda _, inputs: computed.append(tuple(inputs[0].shape)))
    generate(decoder, [[1, 2], [7, 8, 9]], Stopping(4, 5))  # the first row: 3, 4, end
    assert computed == [(2, 3), (2, 1), (2, 1), (1, 1)]  # both prompts, padded, then token by token


def test_the_end_token_ends_its_row_and_stands_in_no_output() -> None:
    rows = generate(counting_model(), [[5], [8, 9], [9, 1]], Stopping(3, 10))
    assert rows == [Generation([6, 7, 8], False), Generation([], True), Generation([2, 3, 4], False)]


def test_a_complete_row_ends_with_the_token_that_completed_it() -> None:
    asked: list[list[int]] = []

    def is_complete(row: int, new: list[int]) -> bool:
        asked.append(list(new))
        return new[-2:] == [7, 8]

    rows = generate(counting_model(), [[6], [7]], Stopping(3, None, is_complete))
    assert rows == [Generation([7, 8], True), Generation([8, 9, 10], False)]
    assert asked == [[7], [8], [7, 8], [8, 9], [8, 9, 10]]  # only new tokens count: row 1's prompt ends in 7


def test_each_row_ends_at_its_own_stop_strings_which_can_be_cut_off() -> None:
    def decode(token_ids: list[int]) -> str:
        return "".join("abcdefghijk"[token_id] for token_id in token_ids)

    rows = generate(
        counting_model(), [[1], [1], [1]], Stopping(4, None, stop_at([["de"], ["x", "c"], []], decode)),
    )  # fmt: skip
    assert [(decode(row.token_ids), row.finished) for row in rows] == [("cde", True), ("c", True), ("cdef", False)]
    assert [cut_at("cdef", strings) for strings in (["e", "de"], ["x"], [])] == ["c", "cdef", "cdef"]


def test_tokens_are_streamed_step_by_step_as_they_come() -> None:
    streamed: list[tuple[int, int]] = []
    generate(
        counting_model(),
        [[3], [8], [5]],
        Stopping(3, 10),
        on_token=lambda row, token_id: streamed.append((row, token_id)),
    )
    assert streamed == [(0, 4), (1, 9), (2, 6), (0, 5), (2, 7), (0, 6), (2, 8)]


@pytest.mark.parametrize("prompts", [[[]], [[1], []]])
def test_an_empty_prompt_is_refused_with_the_remedy(prompts: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="no tokens; give at least one"):
        generate(model(), prompts, Stopping(1, None))


def test_sampling_asks_for_one_seed_per_prompt() -> None:
    with pytest.raises(AssertionError):
        generate(model(), [[1], [2]], Stopping(1, None), sampling=PLAIN, seeds=[0])


def test_no_new_tokens_are_no_tokens() -> None:
    assert generate(model(), [[1]], Stopping(0, None)) == [Generation([], False)]


def test_the_prompts_are_left_as_they_were() -> None:
    prompts = [[1, 2], [3]]
    generate(model(), prompts, Stopping(3, None))
    assert prompts == [[1, 2], [3]]


@pytest.mark.parametrize("training", [False, True])
def test_dropout_is_off_while_generating_and_the_models_mode_returns(training: bool) -> None:
    decoder = model().train(training)
    rows = generate(decoder, PROMPTS[:5], Stopping(5, None))
    assert all(module.training == training for module in decoder.modules())
    assert rows == generate(model(), PROMPTS[:5], Stopping(5, None))


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_the_global_random_stream_is_not_touched(sampling: SamplingParams) -> None:
    decoder, before = model(), torch.get_rng_state()
    generate(decoder, PROMPTS[:5], Stopping(5, None), sampling=sampling, seeds=range(5))
    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_gives_another_sample_and_the_same_seed_the_same() -> None:
    rows = generate(model(), [[1]] * 3, Stopping(8, None), sampling=PLAIN, seeds=[4, 4, 5])
    assert rows[0] == rows[1] != rows[2]


class Positive(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return logits.exp()


def test_a_strong_penalty_keeps_prompt_tokens_out_until_all_were_used() -> None:
    sampling = GREEDY.model_copy(update={"repetition_penalty": 1e6})
    lifted = model()
    lifted.head = nn.Sequential(lifted.head, Positive())
    [row] = generate(lifted, [[1, 2, 3]], Stopping(VOCAB - 3, None), sampling=sampling)
    assert sorted([1, 2, 3, *row.token_ids]) == list(range(VOCAB))


@pytest.mark.parametrize("sampling", [GREEDY, GREEDY.model_copy(update={"temperature": 1.0})])
@pytest.mark.parametrize("row", [[math.nan] * 4, [0.0, math.nan, 1.0, 2.0], [0.0, math.inf, 1.0, 2.0], [-math.inf] * 4])
def test_logits_that_are_not_numbers_end_decoding(sampling: SamplingParams, row: list[float]) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0], row])
    with pytest.raises(FloatingPointError, match="the model's logits are not finite; use a model whose training did "):
        sample_tokens(logits, sampling, torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize(
    "change", [{"temperature": 0.001}, {"top_p": 1e-6}, {"top_k": 1}, {"temperature": 0.001, "top_p": 1e-6}]
)
@pytest.mark.parametrize("penalty", [0.01, 1.0, 100.0])
def test_at_the_ends_of_their_ranges_the_settings_still_choose_the_likeliest(
    change: dict[str, Any], penalty: float
) -> None:
    plain = GREEDY.model_dump() | {"temperature": 1.0, "repetition_penalty": penalty}
    sampling = SamplingParams.model_validate(plain | change)
    logits = 100 * torch.randn(16, 1024, generator=torch.Generator().manual_seed(0))
    logits = penalise_repetition(logits, logits > 0, penalty)
    draws = torch.rand(16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert sample_tokens(logits, sampling, draws).tolist() == logits.argmax(-1).tolist()
