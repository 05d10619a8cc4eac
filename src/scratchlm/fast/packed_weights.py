"""Linear layers whose weights are stored in the blocks that oneDNN's kernels read.

Surprising: with one or a few rows, a product is as slow as the reading of its weights, and a plain matrix is read at
17 GB/s where a packed one is read at 44 (one row; 32 with 16 rows; float32, LOG.md). torch has no public function for
it, so two private ones of torch.ops.mkldnn are called. Equal to the plain layers but for the order of sums:
tests/unit/fast/test_decoding.py.
"""

import torch
from torch import Tensor, nn

from scratchlm.arithmetic.layers import Linear
from scratchlm.model.gpt import FeedForward, GPTModel


class PackedLinear(nn.Module):
    """A linear layer with its weights converted once, without gradients. (…, C) -> (…, C')."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().to(dtype))
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype)
        self.dtype = dtype
        self.activation = "none"  # or "gelu", in its tanh approximation

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.activation, [], "tanh")


def pack_weights(model: GPTModel) -> None:
    """Put a PackedLinear in place of every linear layer, with GELU inside it where one follows.

    In the precision of the products of the autocast around the call. Does nothing where oneDNN has no kernels.
    """
    if model.token_embedding.weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return
    for path, module in [*model.named_modules()]:
        if type(module) is Linear:
            model.set_submodule(path, PackedLinear(module, dtype))
    for module in model.modules():
        if isinstance(module, FeedForward) and isinstance(module.expansion, PackedLinear):
            module.expansion.activation, module.activation = "gelu", nn.Identity()  # type: ignore[assignment]
