"""Low-rank adaptation: train two thin matrices beside each frozen weight. Hu et al. 2021; the book's appendix E.

As in the book, `alpha` is the whole factor on the update (Hu et al. divide it by the rank).
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from scratchlm.arithmetic.functions import linear, matmul
from scratchlm.arithmetic.random import drawing_from, fill_as_linear
from scratchlm.model.config import Strict


class LoRAParams(Strict):
    """Rank and scale of the update, and which linear layers get one.

    layers: within the blocks (`attention`, `feed_forward`, `blocks` for both) or `all`, the head too.
    """

    rank: Annotated[int, Field(ge=1, le=10_000)]
    alpha: Annotated[float, Field(ge=1e-6, le=1e6)]
    layers: Literal["attention", "feed_forward", "blocks", "all"]


class LoRALinear(nn.Module):
    """A frozen linear layer plus alpha times B A, where B starts at zero: at first, nothing changes.

    The fused query-key-value layer gets one update per part, as three separate layers would.
    forward: (…, C_in) -> (…, C_out).
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, n_parts: int = 1) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.alpha = alpha
        start = torch.empty(n_parts, rank, linear.in_features)  # drawn on the CPU: the same on every device
        for part in start:
            fill_as_linear(part)
        self.A = nn.Parameter(start.to(linear.weight.device))
        self.B = nn.Parameter(torch.zeros(n_parts, linear.out_features // n_parts, rank, device=linear.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        updates = [linear(linear(x, a), b) for a, b in zip(self.A, self.B, strict=True)]
        return self.linear(x) + self.alpha * torch.cat(updates, dim=-1)

    def merged(self) -> nn.Linear:
        """The plain linear layer that computes the same."""
        with torch.no_grad():
            update = matmul(self.B, self.A).flatten(0, 1)  # (P, C_out/P, C_in) -> (C_out, C_in)
            self.linear.weight += self.alpha * update
        return self.linear


def apply_lora(model: nn.Module, params: LoRAParams, seed: int) -> None:
    """Freeze `model` and put a LoRALinear in place of each linear layer that `params.layers` names.

    A tied language-model head is left alone: merging would change the token embedding with it.
    """
    model.requires_grad_(False)
    with drawing_from(seed):
        for path, module in [*model.named_modules()]:
            if isinstance(module, nn.Linear) and _chosen(path, params.layers) and not _tied(model, module):
                n_parts = 3 if path.endswith("qkv") else 1
                model.set_submodule(path, LoRALinear(module, params.rank, params.alpha, n_parts))


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The low-rank matrices alone, by parameter name: all that differs from the base model in frozen layers."""
    return {
        f"{path}.{name}": getattr(module, name).detach()
        for path, module in model.named_modules()
        if isinstance(module, LoRALinear)
        for name in ("A", "B")
    }


def merge_lora(model: nn.Module) -> None:
    """Fold every update into its weight; afterwards the model is of plain layers again and computes the same."""
    for path, module in [*model.named_modules()]:
        if isinstance(module, LoRALinear):
            model.set_submodule(path, module.merged())


def _chosen(path: str, layers: str) -> bool:
    parts = path.split(".")
    return layers == "all" or ("blocks" in parts and (layers == "blocks" or layers in parts))


def _tied(model: nn.Module, linear: nn.Linear) -> bool:
    return any(isinstance(m, nn.Embedding) and m.weight is linear.weight for m in model.modules())
