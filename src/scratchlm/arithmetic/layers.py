"""torch's layers with weights, computing through this package. They draw their initial weights as torch's do."""

from torch import Tensor, nn

from scratchlm.arithmetic.functions import dropout, embedding, linear


class Linear(nn.Linear):
    """(…, C_in) -> (…, C_out)."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Embedding(nn.Embedding):
    """(…,) int64 -> (…, C)."""

    def forward(self, ids: Tensor) -> Tensor:
        return embedding(ids, self.weight)


class Dropout(nn.Dropout):
    """The identity outside training."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)
