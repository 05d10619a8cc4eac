"""The KV cache: keys and values of earlier tokens, so that decoding computes each token once.

Letters: B batch, T time, K key-value heads, D head width, S cached positions.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from scratchlm.arithmetic.functions import most_likely

CACHE_GROWTH = 32  # slots added at a time


class LayerCache:
    """Keys and values of one layer, in the slots that KVCache.advance has laid out."""

    keys: Tensor | None = None  # (B, K, S, D), like values
    values: Tensor | None = None
    positions: Tensor  # (B, T) of the tokens that come next
    mask: Tensor  # (B, 1, T, S) bool, True where they see a slot

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Store (B, K, T, D) of the next tokens; return all keys and values, (B, K, S, D), and the mask."""
        B, K, _, D = keys.shape
        if self.keys is None or self.values is None:
            self.keys, self.values = keys.new_zeros(B, K, 0, D), values.new_zeros(B, K, 0, D)
        if more := self.mask.shape[-1] - self.keys.shape[2]:  # negative once the longest row has ended
            self.keys, self.values = pad(self.keys, (0, 0, 0, more)), pad(self.values, (0, 0, 0, more))
        rows = torch.arange(B, device=keys.device)[:, None]  # (B, 1)
        self.keys[rows, :, self.positions] = keys.transpose(1, 2)
        self.values[rows, :, self.positions] = values.transpose(1, 2)
        return self.keys, self.values, self.mask


class KVCache:
    """Keys and values of every layer for the tokens seen so far; every row has its own length.

    Slot p of row b holds the token at position p, so a query at position q sees exactly the slots p <= q. Padding
    after a row's end is overwritten before a query sees it. Attention runs over all slots, the masked ones
    too, because a slice of the cache would be copied before each matrix product.
    """

    def __init__(self, n_layers: int, n_rows: int, context_length: int) -> None:
        self.layers = [LayerCache() for _ in range(n_layers)]
        self.lengths = [0] * n_rows  # tokens of each row
        self.context_length = context_length

    def advance(self, n_tokens: int, device: torch.device) -> Tensor:
        """Make room for the next `n_tokens` of each row, which a forward pass then adds; their positions, (B, T)."""
        positions = torch.tensor(self.lengths, device=device)[:, None] + torch.arange(n_tokens, device=device)
        self.lengths = [length + n_tokens for length in self.lengths]
        n_slots = min(self.context_length, CACHE_GROWTH * math.ceil(max(self.lengths) / CACHE_GROWTH))
        mask = (torch.arange(n_slots, device=device) <= positions[..., None])[:, None]  # (B, 1, T, S)
        for layer in self.layers:
            layer.positions, layer.mask = positions, mask
        return positions

    def step(self, model: Callable[..., Tensor], token_ids: list[int]) -> Tensor:
        """The next token of each row in, the logits of the one after it out: (n, V)."""
        assert self.layers[0].keys is not None, "the prompts are in it"
        device = self.layers[0].keys.device
        return model(torch.tensor(token_ids, device=device)[:, None], self)[:, -1]

    def most_likely(self, model: Callable[..., Tensor], token_ids: list[int]) -> list[list[float]]:
        """The same, but of each row only the largest logit and its token id."""
        return most_likely(self.step(model, token_ids)).tolist()

    def join(self, other: "KVCache") -> None:
        """Append the rows of another cache of the same model; both have read their prompts."""
        self.lengths += other.lengths
        for layer, more in zip(self.layers, other.layers, strict=True):
            assert layer.keys is not None and layer.values is not None
            assert more.keys is not None and more.values is not None
            n_slots = max(layer.keys.shape[2], more.keys.shape[2])
            layer.keys = torch.cat([_with_slots(keys, n_slots) for keys in (layer.keys, more.keys)])
            layer.values = torch.cat([_with_slots(values, n_slots) for values in (layer.values, more.values)])

    def select(self, rows: list[int]) -> None:
        """Drop all rows but these."""
        self.lengths = [self.lengths[row] for row in rows]
        for layer in self.layers:
            if layer.keys is not None and layer.values is not None:
                index = torch.tensor(rows, dtype=torch.int64, device=layer.keys.device)
                layer.keys, layer.values = layer.keys[index], layer.values[index]


def _with_slots(tensor: Tensor, n_slots: int) -> Tensor:
    """(B, K, S, D) -> (B, K, n_slots, D), with zeros in the new slots."""
    return pad(tensor, (0, 0, 0, n_slots - tensor.shape[2]))
