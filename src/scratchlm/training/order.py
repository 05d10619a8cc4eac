"""The order of the training examples: one shuffle per epoch."""

from functools import lru_cache

import numpy as np
import torch

from scratchlm.arithmetic.random import generator, stream

MOST_IN_MEMORY = 1 << 24  # examples; a permutation takes 8 bytes for each
BLOCK = 1 << 16  # indices that are permuted at once; for a few, the overhead of numpy's calls dominates
ROUNDS = 8


def batch_indices(step: int, n_examples: int, batch_size: int, seed: int) -> np.ndarray:
    """The examples of one step, (batch_size,) int64. Each epoch has its own shuffle, a function of the arguments.

    Memory does not grow with the number of examples: those of more than MOST_IN_MEMORY are permuted index by index.
    """
    epoch, batch = divmod(step, n_examples // batch_size)
    if n_examples <= MOST_IN_MEMORY:
        return _epoch_order(n_examples, seed, epoch)[batch * batch_size : (batch + 1) * batch_size]
    block, i = divmod(batch, max(1, BLOCK // batch_size))
    return _block_of_order(n_examples, batch_size, seed, epoch, block)[i * batch_size : (i + 1) * batch_size]


def permuted(indices: np.ndarray, n: int, seed: int) -> np.ndarray:
    """The examples at these indices of a shuffle of 0..n-1, (N,) int64: a bijection for each seed, of integers only.

    A Feistel network (Luby and Rackoff 1988) permutes the numbers of an even number of bits, at most 4 n of them. A
    result of n or more is permuted again until it is less (cycle walking; Black and Rogaway 2002, section 3). The round
    function is the finalizer of SplitMix64 (Steele, Lea and Flood 2014) of a half and the round's key.
    """
    n_bits = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))  # of a half
    keys = [np.uint64(stream(seed, f"round {i}")) for i in range(ROUNDS)]
    found = indices.astype(np.uint64)
    outside = np.arange(len(found))
    while len(outside):
        found[outside] = _feistel(found[outside], n_bits, keys)
        outside = outside[found[outside] >= n]
    return found.astype(np.int64)


def _feistel(x: np.ndarray, n_bits: np.uint64, keys: list[np.uint64]) -> np.ndarray:
    """Permute numbers of 2 * n_bits bits, (N,) uint64."""
    mask = (np.uint64(1) << n_bits) - np.uint64(1)
    left, right = x >> n_bits, x & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right + key) & mask)
    return (left << n_bits) | right


def _mixed(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer, modulo 2**64: each bit of the result depends on all bits of x."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@lru_cache(maxsize=1)  # one epoch at a time
def _epoch_order(n_examples: int, seed: int, epoch: int) -> np.ndarray:
    return torch.randperm(n_examples, generator=generator(seed, f"data order {epoch}")).numpy()


@lru_cache(maxsize=1)  # batches come in their order
def _block_of_order(n_examples: int, batch_size: int, seed: int, epoch: int, block: int) -> np.ndarray:
    size = max(1, BLOCK // batch_size) * batch_size
    end = min((block + 1) * size, n_examples)
    return permuted(np.arange(block * size, end), n_examples, stream(seed, f"data order {epoch}"))
