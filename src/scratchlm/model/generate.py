"""From logits to text: filters and sampling, and the loop that decodes a batch with a KV cache."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, NamedTuple

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from scratchlm.arithmetic.functions import most_likely, running_total, softmax
from scratchlm.arithmetic.random import uniform_draws
from scratchlm.model.cache import KVCache
from scratchlm.model.config import Strict
from scratchlm.model.gpt import GPTModel, evaluating


def _not_almost_greedy(temperature: float) -> float:
    if 0 < temperature < 0.001:
        raise ValueError("must be 0, which is greedy, or at least 0.001")
    return temperature


Temperature = Annotated[float, Field(ge=0, le=100), AfterValidator(_not_almost_greedy)]


class SamplingParams(Strict):
    """The settings for sampling the next token.

    temperature 0 is greedy. top_k 0 and top_p 1 keep every token; repetition_penalty 1 changes nothing.
    """

    temperature: Temperature
    top_k: Annotated[int, Field(ge=0)]
    top_p: Annotated[float, Field(ge=1e-6, le=1)]
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)]

    @property
    def is_greedy(self) -> bool:
        """Whether the next token is the most likely one, whatever the earlier tokens are."""
        return self.temperature == 0 and self.repetition_penalty == 1


GREEDY = SamplingParams(temperature=0.0, top_k=0, top_p=1.0, repetition_penalty=1.0)


class Stopping(NamedTuple):
    """When a row ends: at max_new_tokens, at the end token, or once is_complete(row, new_token_ids) is true."""

    max_new_tokens: int
    end_token_id: int | None
    is_complete: Callable[[int, list[int]], bool] | None = None  # see stop_at


class Generation(NamedTuple):
    """The new token ids of one prompt, without the end token, and whether the row ended before max_new_tokens."""

    token_ids: list[int]
    finished: bool


def top_k_filter(logits: Tensor, k: int) -> Tensor:
    """(…, V) -> (…, V) with all but the k largest at -inf; ties with the k-th stay. Fan et al. 2018."""
    if k == 0 or k >= logits.shape[-1]:
        return logits
    threshold = logits.topk(k).values[..., -1:]
    return logits.masked_fill(logits < threshold, -torch.inf)


def top_p_filter(logits: Tensor, p: float) -> Tensor:
    """(…, V) -> (…, V) with all but the smallest set of tokens of total probability p at -inf. Holtzman et al. 2020."""
    if p == 1:
        return logits
    ordered, order = logits.sort(descending=True, stable=True)
    probabilities = softmax(ordered)
    before = running_total(probabilities) - probabilities  # the probability of all more likely tokens
    return logits.masked_fill((before >= p).gather(-1, order.argsort(-1)), -torch.inf)


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make tokens that occurred less likely: positive logits divided, negative ones multiplied. Keskar et al. 2019.

    logits: (B, V); seen: (B, V) bool.
    """
    if penalty == 1:
        return logits
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def sample_tokens(logits: Tensor, sampling: SamplingParams, draws: Tensor | None) -> Tensor:
    """One token id per row: (B, V) logits -> (B,) int64.

    draws: (B,) float64 on the CPU, uniform in [0, 1), one per row, ignored when greedy. The cumulative distribution
    is inverted at the draw, so that a row's token depends on its own draw and not on its batch.
    Raises FloatingPointError if a row's largest logit is not a finite number, or one of them is NaN.
    """
    logits = logits.float()
    if sampling.temperature:
        logits = logits.cpu() / sampling.temperature  # from here on exact and deterministic on every device
    greedy = finite_tokens(most_likely(logits).tolist())
    if sampling.temperature == 0:
        return torch.tensor(greedy)
    assert draws is not None
    logits = top_p_filter(top_k_filter(logits, sampling.top_k), sampling.top_p)
    cumulative = running_total(softmax(logits.double()))
    target = draws[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp_max(logits.shape[-1] - 1)


def next_tokens(
    logits: Tensor, tokens: Sequence[Sequence[int]], sampling: SamplingParams, generators: Sequence[torch.Generator]
) -> list[int]:
    """The next token of each row, chosen as `sampling` says: (B, V) logits -> B ids. Errors as sample_tokens.

    tokens: all of each row so far. generators: one per row, from which it draws; none are needed at temperature 0.
    """
    if sampling.repetition_penalty != 1:
        logits = penalise_repetition(logits, _seen(tokens, logits), sampling.repetition_penalty)
    draws = uniform_draws(generators) if sampling.temperature else None
    return sample_tokens(logits, sampling, draws).tolist()


def finite_tokens(most_likely: Sequence[Sequence[float]]) -> list[int]:
    """Token ids from pairs of a logit and an id. Raises FloatingPointError if a logit is not a finite number."""
    if not all(math.isfinite(logit) for logit, _ in most_likely):
        raise FloatingPointError("the model's logits are not finite; use a model whose training did not diverge")
    return [int(token_id) for _, token_id in most_likely]


def stop_at(strings: Sequence[Sequence[str]], decode: Callable[[list[int]], str]) -> Callable[[int, list[int]], bool]:
    """An `is_complete` that ends row i once its new text contains one of strings[i]; `cut_at` removes the string."""
    return lambda row, token_ids: any(string in decode(token_ids) for string in strings[row])


def cut_at(text: str, strings: Sequence[str]) -> str:
    """`text` up to where the first of `strings` begins."""
    return text[: min((index for string in strings if (index := text.find(string)) >= 0), default=len(text))]


def generate(
    model: GPTModel,
    prompts: Sequence[Sequence[int]],
    stopping: Stopping,
    sampling: SamplingParams = GREEDY,
    seeds: Sequence[int] = (),
    on_token: Callable[[int, int], None] | None = None,
) -> list[Generation]:
    """Continue each prompt of a batch; the result does not depend on which prompts share the batch.

    The loop is the book's `generate`: logits of the last token, filter, sample, append. DecodeState adds the KV cache.
    model: a GPTModel, or the faster copy that fast.decoding.for_inference returns.
    prompts: token ids, each non-empty, of any lengths; only the last context_length tokens of a longer one are used.
    seeds: one per prompt, for sampling. on_token(row, token_id): called as tokens come (streaming).
    Raises ValueError for an empty prompt.
    """
    if not all(prompts):
        raise ValueError("a prompt has no tokens; give at least one token to continue, such as the end-of-text token")
    assert sampling.temperature == 0 or len(seeds) == len(prompts)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    tokens = [list(prompt) for prompt in prompts]
    finished = [False] * len(prompts)
    active = list(range(len(prompts)))
    state = DecodeState(model)
    with evaluating(model):
        for _ in range(stopping.max_new_tokens):
            if not active:
                break
            sequences = {row: tokens[row] for row in active}
            if sampling.is_greedy:
                found = finite_tokens(state.most_likely(sequences))
            else:
                own_generators = [generators[row] for row in active] if generators else []
                found = next_tokens(state.next_logits(sequences), list(sequences.values()), sampling, own_generators)
            for row, token_id in zip(active, found, strict=True):
                if token_id == stopping.end_token_id:
                    finished[row] = True
                    continue
                tokens[row].append(token_id)
                if on_token:
                    on_token(row, token_id)
                if stopping.is_complete:
                    finished[row] = stopping.is_complete(row, tokens[row][len(prompts[row]) :])
            active = [row for row in active if not finished[row]]
    return [Generation(tokens[row][len(prompt) :], finished[row]) for row, prompt in enumerate(prompts)]


class DecodeState:
    """The KV cache of the rows that are still decoded.

    Positions are absolute: once a row is longer than the context, its window slides and every position in it changes,
    so it leaves the cache and is computed from scratch at each step.
    """

    def __init__(self, model: GPTModel) -> None:
        self.model = model
        self.rows: list[int] = []  # those in the cache
        self.cache: KVCache | None = None

    def add(self, tokens: Mapping[int, list[int]]) -> Tensor:
        """Read the prompts of new rows, none longer than the context, into the cache: their next logits, (B, V)."""
        cache = self.model.new_cache(len(tokens))
        logits = self.model.next_logits(list(tokens.values()), cache)
        if self.cache is None:
            self.rows, self.cache = list(tokens), cache
        else:
            self.rows = self.rows + list(tokens)
            self.cache.join(cache)
        return logits

    def next_logits(self, tokens: Mapping[int, list[int]]) -> Tensor:
        """Logits of each row's next token, (B, V).

        tokens: all token ids of each row that is still decoded, one more than at the call before.
        """
        context = self.model.config.context_length
        fitting = [row for row in tokens if len(tokens[row]) <= context]
        outgrown = [row for row in tokens if len(tokens[row]) > context]
        if not outgrown:
            return self._cached_logits(tokens)
        logits = [self._cached_logits({row: tokens[row] for row in fitting})] if fitting else []
        logits.append(self.model.next_logits([tokens[row][-context:] for row in outgrown]))
        indices = {row: index for index, row in enumerate(fitting + outgrown)}
        return torch.cat(logits)[[indices[row] for row in tokens]]

    def most_likely(self, tokens: Mapping[int, list[int]]) -> list[list[float]]:
        """The same, but of each row only the largest logit and its token id."""
        if self.cache is None or any(len(row) > self.model.config.context_length for row in tokens.values()):
            return most_likely(self.next_logits(tokens)).tolist()
        return self._cache_of(tokens).most_likely(self.model, [row[-1] for row in tokens.values()])

    def _cached_logits(self, tokens: Mapping[int, list[int]]) -> Tensor:
        if self.cache is None:
            return self.add(tokens)
        return self._cache_of(tokens).step(self.model, [row[-1] for row in tokens.values()])

    def _cache_of(self, tokens: Mapping[int, list[int]]) -> KVCache:
        """The cache, without the rows that have ended."""
        assert self.cache is not None
        rows = list(tokens)
        if rows != self.rows:
            self.cache.select([index for index, row in enumerate(self.rows) if row in tokens])
            self.rows = rows
        return self.cache


def _seen(tokens: Sequence[Sequence[int]], logits: Tensor) -> Tensor:
    seen = torch.zeros_like(logits, dtype=torch.bool)
    for row, token_ids in enumerate(tokens):
        seen[row, torch.tensor(token_ids, device=logits.device)] = True
    return seen
