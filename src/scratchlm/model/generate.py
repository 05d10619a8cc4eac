"""Turning logits into text: choosing tokens, and the loop that generates a batch with cached keys and values."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from scratchlm.model.attention import LayerCache
from scratchlm.model.gpt import GPTModel
from scratchlm.model.packing import Packing

SLOTS_AT_ONCE = 32  # by which caches grow


class SamplingParams(BaseModel):
    """How the next token is chosen.

    temperature 0 is greedy. top_k 0 and top_p 1 keep every token; repetition_penalty 1 changes nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    temperature: Annotated[float, Field(ge=0)]
    top_k: Annotated[int, Field(ge=0)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    repetition_penalty: Annotated[float, Field(gt=0)]


GREEDY = SamplingParams(temperature=0.0, top_k=0, top_p=1.0, repetition_penalty=1.0)


@dataclass(frozen=True)
class Generation:
    """What one prompt led to: the new token ids, without prompt and end token, and whether the end was reached."""

    token_ids: list[int]
    finished: bool


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """(…, V) -> (…, V) with all but the k largest at -inf; ties with the k-th stay. Fan et al. 2018."""
    if k == 0 or k >= logits.shape[-1]:
        return logits
    threshold = logits.topk(k).values[..., -1:]
    return logits.masked_fill(logits < threshold, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """(…, V) -> (…, V) with all but the smallest set of tokens of total probability p at -inf. Holtzman et al. 2020."""
    if p == 1:
        return logits
    ordered, order = logits.sort(descending=True, stable=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # probability of all more likely tokens
    return logits.masked_fill((before >= p).gather(-1, order.argsort(-1)), -torch.inf)


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make tokens that occurred less likely: positive logits divided, negative ones multiplied. Keskar et al. 2019.

    logits: (B, V); seen: (B, V) bool.
    """
    if penalty == 1:
        return logits
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def choose(logits: Tensor, sampling: SamplingParams, draws: Tensor | None) -> Tensor:
    """One token id per row: (B, V) logits -> (B,) int64.

    draws: (B,) float64 on the CPU, uniform in [0, 1), one per row, not read when greedy. A token is found by
    inverting the cumulative distribution, so that a row's choice depends on its own draw and not on its batch.
    """
    if sampling.temperature == 0:
        return logits.float().argmax(-1)  # several times as fast as in bfloat16
    assert draws is not None
    logits = logits.float().cpu() / sampling.temperature  # from here on exact and deterministic on every device
    logits = keep_top_p(keep_top_k(logits, sampling.top_k), sampling.top_p)
    cumulative = logits.double().softmax(-1).cumsum(-1)
    target = draws[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp_max(logits.shape[-1] - 1)


def stop_at(strings: Sequence[Sequence[str]], decode: Callable[[list[int]], str]) -> Callable[[int, list[int]], bool]:
    """An `is_complete` for generate: row i ends once its new text holds one of strings[i].

    The text keeps what ended it; see `cut_at` for taking it off.
    """
    return lambda row, token_ids: any(string in decode(token_ids) for string in strings[row])


def cut_at(text: str, strings: Sequence[str]) -> str:
    """`text` up to where the first of `strings` begins."""
    return text[: min((place for string in strings if (place := text.find(string)) >= 0), default=len(text))]


@torch.no_grad()
def generate(
    model: GPTModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    end_token_id: int | None,
    sampling: SamplingParams = GREEDY,
    seeds: Sequence[int] | None = None,
    is_complete: Callable[[int, list[int]], bool] | None = None,
    on_token: Callable[[int, int], None] | None = None,
) -> list[Generation]:
    """Continue each prompt of a batch; the result does not depend on which prompts share the batch.

    prompts: token ids, each non-empty, of any lengths; of a long one the last context_length tokens count.
    model: as it is, or what `for_inference` made of it, which pays from a few tokens on.
    seeds: one per prompt, for sampling. is_complete(row, new_token_ids): True ends the row, see `stop_at`.
    on_token(row, token_id): called as tokens come (streaming).
    Raises ValueError for an empty prompt.
    """
    if not all(prompts):
        raise ValueError("a prompt has no tokens; give at least one token to continue, such as the end-of-text token")
    was_training = model.training
    model.eval()
    generators = [torch.Generator().manual_seed(seed) for seed in seeds or ()]
    assert sampling.temperature == 0 or len(generators) == len(prompts)
    tokens = [list(prompt) for prompt in prompts]
    finished = [False] * len(prompts)
    active = list(range(len(prompts)))
    state = _Prefilled(model, tokens)
    for _ in range(max_new_tokens):
        if not active:
            break
        logits = state.next_logits([tokens[row] for row in active])
        if sampling.repetition_penalty != 1:
            logits = penalise_repetition(logits, _seen(tokens, active, logits), sampling.repetition_penalty)
        draws = None
        if sampling.temperature:
            draws = torch.cat([torch.rand(1, generator=generators[row], dtype=torch.float64) for row in active])
        going_on = []
        for place, (row, token_id) in enumerate(zip(active, choose(logits, sampling, draws).tolist(), strict=True)):
            if token_id == end_token_id:
                finished[row] = True
                continue
            tokens[row].append(token_id)
            if on_token:
                on_token(row, token_id)
            if is_complete and is_complete(row, tokens[row][len(prompts[row]) :]):
                finished[row] = True
                continue
            going_on.append(place)
        if len(going_on) < len(active):
            state.keep(going_on)
            active = [active[place] for place in going_on]
    model.train(was_training)
    return [Generation(tokens[row][len(prompt) :], finished[row]) for row, prompt in enumerate(prompts)]


class _Prefilled:
    """The cache of a batch of token sequences, and the logits of each one's next token.

    Rows are padded at the end, so slot p holds position p in every row. Positions are absolute: once a row
    is longer than the context, its window slides and every position in it changes, so that row is computed
    from scratch at each step, exactly as without a cache.
    """

    def __init__(self, model: GPTModel, tokens: list[list[int]]) -> None:
        self.model = model
        self.device = model.token_embedding.weight.device
        self.context_length = model.config.context_length
        self.caches = [LayerCache() for _ in model.blocks]
        self.cached: list[int | None] = [0] * len(tokens)  # tokens of each row in the cache; None: outgrown

    def next_logits(self, tokens: list[list[int]]) -> Tensor:
        """(B, V) after the last token of each row."""
        fits = [len(row) <= self.context_length for row in tokens]
        if any(cached is not None and not fit for cached, fit in zip(self.cached, fits, strict=True)):
            self._keep_in_cache([place for place, fit in enumerate(fits) if fit and self.cached[place] is not None])
            self.cached = [cached if fit else None for cached, fit in zip(self.cached, fits, strict=True)]
        logits = []
        if fitting := [row for row, fit in zip(tokens, fits, strict=True) if fit]:
            logits.append(self._with_cache(fitting))
            self.cached = [len(row) if fit else None for row, fit in zip(tokens, fits, strict=True)]
        if outgrown := [row[-self.context_length :] for row, fit in zip(tokens, fits, strict=True) if not fit]:
            logits.append(self._last_logits(outgrown))
        if len(logits) == 1:
            return logits[0]
        order = sorted(range(len(tokens)), key=lambda place: not fits[place])  # the order in which they were computed
        return torch.cat(logits)[torch.tensor(order, device=self.device).argsort()]

    def keep(self, places: list[int]) -> None:
        """Drop the rows that ended, so that no time goes into them."""
        self._keep_in_cache([place for place in places if self.cached[place] is not None])
        self.cached = [self.cached[place] for place in places]

    def _keep_in_cache(self, places: list[int]) -> None:
        if not any(self.cached):
            return  # nothing was computed yet
        slot = {place: i for i, place in enumerate(p for p, cached in enumerate(self.cached) if cached is not None)}
        index = torch.tensor([slot[place] for place in places], dtype=torch.int64, device=self.device)
        for cache in self.caches:
            cache.keys, cache.values = cache.keys[index], cache.values[index]

    def _with_cache(self, tokens: list[list[int]]) -> Tensor:
        cached = [length for length in self.cached if length is not None]
        if not any(cached):
            return self._last_logits(tokens, self.caches)
        assert all(len(row) == length + 1 for row, length in zip(tokens, cached, strict=True))
        positions = torch.tensor(cached, device=self.device)[:, None]  # (B, 1)
        last = torch.tensor([[row[-1]] for row in tokens], device=self.device)
        n_slots = min(self.context_length, SLOTS_AT_ONCE * math.ceil(max(map(len, tokens)) / SLOTS_AT_ONCE))
        mask = (torch.arange(n_slots, device=self.device) <= positions)[:, None, None]  # (B, 1, 1, S)
        hidden = self.model.hidden_states(last, positions=positions, mask=mask, caches=self.caches)
        return self.model.head(hidden[:, -1])

    def _last_logits(self, tokens: list[list[int]], caches: list[LayerCache] | None = None) -> Tensor:
        lengths = torch.tensor([len(row) for row in tokens], device=self.device)
        packing = Packing(lengths)
        packed = torch.tensor([token_id for row in tokens for token_id in row], device=self.device)
        return self.model.head(self.model.packed_states(packed, packing, lengths - 1, caches))


def _seen(tokens: list[list[int]], active: list[int], logits: Tensor) -> Tensor:
    seen = torch.zeros_like(logits, dtype=torch.bool)
    for place, row in enumerate(active):
        seen[place, torch.tensor(tokens[row], device=logits.device)] = True
    return seen
