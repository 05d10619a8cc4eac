"""torch's layers with weights, computing through this package. They draw their initial weights as torch's do."""

import math

from torch import Tensor, nn

from scratchlm.arithmetic.functions import dropout, embedding, linear
from scratchlm.arithmetic.random import fill_as_linear, fill_normal, fill_uniform


class Linear(nn.Linear):
    """(…, C_in) -> (…, C_out)."""

    def reset_parameters(self) -> None:
        fill_as_linear(self.weight)
        if self.bias is not None:
            fill_uniform(self.bias, 1 / math.sqrt(self.in_features))

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
