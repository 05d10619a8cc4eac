"""Sequences of different lengths one behind the other, so that no work goes into padding."""

import torch
from torch import Tensor


class Packing:
    """Where the tokens of B sequences stand when they follow each other without padding, N in all.

    Everything that treats each position on its own works on (N, …); only attention needs rows, and gets them padded.
    """

    def __init__(self, lengths: Tensor) -> None:
        """lengths: (B,) int64, at least one of them positive."""
        self.width = int(lengths.max())
        self.starts = lengths.cumsum(0) - lengths  # (B,)
        self.n_rows = len(lengths)
        columns = torch.arange(self.width, device=lengths.device)
        self.places = (columns < lengths[:, None]).flatten().nonzero().squeeze(1)  # (N,) in B * width, ascending
        self.positions = self.places % self.width  # (N,) of each token in its sequence
        self._without_gaps = len(self.places) == self.n_rows * self.width

    def pack(self, padded: Tensor) -> Tensor:
        """(B, T, …) with T at least `width`, padded at the end -> (N, …)."""
        flat = padded[:, : self.width].flatten(0, 1)
        return flat if self._without_gaps else flat.index_select(0, self.places)

    def pad(self, packed: Tensor) -> Tensor:
        """(N, …) -> (B, width, …), zero behind each sequence's end."""
        shape = (self.n_rows * self.width, *packed.shape[1:])
        flat = packed if self._without_gaps else packed.new_zeros(shape).index_copy(0, self.places, packed)
        return flat.unflatten(0, (self.n_rows, self.width))
