"""torch's layers with weights, computing through this package. They draw their initial weights as torch's do."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from scratchlm.arithmetic.functions import dropout, embedding, linear
from scratchlm.arithmetic.random import fill_as_linear, fill_normal, fill_uniform


class Linear(nn.Linear):
    """(…, C_in) -> (…, C_out).

    parts: the widths of several layers side by side, which are drawn one after another and computed as one.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, parts: Sequence[int] = ()) -> None:
        self.parts = tuple(parts) or (out_features,)
        super().__init__(in_features, out_features, bias)

    def reset_parameters(self) -> None:
        biases = self.bias.split(self.parts) if self.bias is not None else [None] * len(self.parts)
        for weight, bias in zip(self.weight.split(self.parts), biases, strict=True):
            fill_as_linear(weight)
            if bias is not None:
                fill_uniform(bias, 1 / math.sqrt(self.in_features))

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Embedding(nn.Embedding):
    """(…,) int64 -> (…, C)."""

    def reset_parameters(self) -> None:
        fill_normal(self.weight, 1.0)

    def forward(self, ids: Tensor) -> Tensor:
        return embedding(ids, self.weight)


class Dropout(nn.Dropout):
    """The identity outside training."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)
