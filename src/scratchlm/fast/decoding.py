"""The fastest form of the model for decoding: packed weights, and prompts without padding.

Surprising: with one or a few rows, a product takes as long as reading its weights. oneDNN reads weights that are
stored in the blocks of its kernels at 44 GB/s, but a plain matrix at 17 (one row, float32, LOG.md). torch has no public
function for it, so this module calls two private ones of torch.ops.mkldnn. The result equals that of the plain layers
except for the order of sums (tests/unit/fast/test_decoding.py).

Pays: with dense caches, GELU inside the product and prompts read without padding, 16 prompts of 64 tokens and 64 new
ones (124M) went from 404 to 535 tokens/s in float32 and from 654 to 839 in bfloat16 (LOG.md).
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scratchlm.arithmetic.integers import CHUNK
from scratchlm.arithmetic.layers import Linear
from scratchlm.arithmetic.mode import is_exact
from scratchlm.fast.varlen import VarlenLayout, embed, last_token_states
from scratchlm.model.attention import KVCache
from scratchlm.model.gpt import GELU, FeedForward, GPTModel

FEW_ROWS = 32  # for more, a product of matrices is faster


class DecodingGPT(GPTModel):
    """A GPTModel whose prompts have no padding, and whose last block runs only at their last token."""

    def next_logits(self, rows: Sequence[Sequence[int]], cache: KVCache | None = None) -> Tensor:
        lengths = [len(row) for row in rows]
        device = self.token_embedding.weight.device
        layout = VarlenLayout(torch.tensor(lengths, device=device))
        token_ids = torch.tensor([token_id for row in rows for token_id in row], device=device)  # (N,)
        logits = self.head(last_token_states(self, embed(self, token_ids, layout), layout, cache=cache))
        if cache:
            cache.lengths = lengths
        return logits


def for_inference(model: GPTModel) -> DecodingGPT:
    """A twin of the model for `generate`, in evaluation mode; made in about the time of three decoding steps.

    It shares the model's parameters, except for the matrices that pack_weights copies: later changes of these do not
    affect it.
    """
    # The parameters are in deepcopy's memo of copied objects, so they are shared and not copied
    twin = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    twin.__class__ = DecodingGPT  # the same attributes, with another next_logits
    pack_weights(twin)
    return twin.eval()  # type: ignore[return-value]


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


class ExactPackedLinear(nn.Module):
    """The same in precision `exact`: the weight's integers are found once. Without gradients. (…, C) -> (…, C')."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        from scratchlm.arithmetic import fused  # takes half a second, and only this precision needs it

        self.linear, self.fused = linear, fused
        self.packed = fused.pack(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        if len(rows) > FEW_ROWS:
            return self.linear(x)
        return self.fused.packed_linear(rows, self.packed, self.linear.bias).view(*x.shape[:-1], -1)


def pack_weights(model: GPTModel) -> None:
    """Put a PackedLinear in place of every linear layer, with GELU inside it where one follows.

    The layers compute in the precision of the surrounding autocast. Does nothing where oneDNN has no kernels.
    """
    on_cpu = model.token_embedding.weight.device.type == "cpu"
    if is_exact() and on_cpu:
        for path, module in [*model.named_modules()]:
            if type(module) is Linear and module.in_features <= CHUNK:
                model.set_submodule(path, ExactPackedLinear(module))
    if is_exact() or not on_cpu or not torch.backends.mkldnn.is_available():
        return
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return
    for path, module in [*model.named_modules()]:
        if type(module) is Linear:
            model.set_submodule(path, PackedLinear(module, dtype))
    for module in model.modules():
        if not isinstance(module, FeedForward) or not isinstance(module.activation, GELU):
            continue
        if isinstance(module.expansion, PackedLinear):
            module.expansion.activation, module.activation = "gelu", nn.Identity()  # type: ignore[assignment]
