"""A model's weights as decoding reads them fastest."""

import copy

import torch
from torch import Tensor, nn

from scratchlm.model.gpt import FeedForward, GPTModel


class PackedLinear(nn.Module):
    """A linear layer whose weights are converted once, into the blocks that oneDNN's kernels read. (…, C) -> (…, C').

    With one or a few rows the time goes into reading the weights, which these kernels do two to three times as fast
    as those for a plain matrix. No gradients.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().to(dtype))
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype)
        self.dtype = dtype
        self.activation = "none"  # or "gelu", in its tanh approximation

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.activation, [], "tanh")


def for_inference(model: GPTModel) -> GPTModel:
    """The model with its linear layers packed, on a CPU that oneDNN has kernels for. Else the model itself.

    Takes the precision of the products from the autocast that it is called in, and needs memory for the copy. It does
    not see later changes of the model's matrices. Made in about the time of three decoding steps.
    """
    if model.token_embedding.weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return model
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return model
    twin = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    for path, module in [*twin.named_modules()]:
        if type(module) is nn.Linear:
            parent, _, name = path.rpartition(".")
            setattr(twin.get_submodule(parent), name, PackedLinear(module, dtype))
    for module in twin.modules():
        if isinstance(module, FeedForward) and isinstance(module.expansion, PackedLinear):
            module.expansion.activation, module.activation = "gelu", nn.Identity()  # type: ignore[assignment]
    return twin.eval()
