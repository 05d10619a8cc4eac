"""Low-rank adaptation: train two thin matrices beside each frozen weight. Hu et al. 2021; the book's appendix E.

As in the book, `alpha` is the whole factor on the update (Hu et al. divide it by the rank).
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from scratchlm.arithmetic.functions import linear, matmul
from scratchlm.arithmetic.layers import Linear
from scratchlm.arithmetic.random import drawing_from, fill_as_linear, stream
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

    A layer of several parts, such as the one of query, key and value, gets one update per part, as separate layers
    would. A: (P, rank, C_in) for P parts; B: (C_out, rank): the book's, transposed as torch stores weights.
    forward: (…, C_in) -> (…, C_out).
    """

    def __init__(self, frozen: Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.linear = frozen.requires_grad_(False)
        self.alpha, self.parts = alpha, frozen.parts
        start = torch.empty(len(self.parts), rank, frozen.in_features)  # drawn on the CPU: the same on every device
        for part in start:
            fill_as_linear(part)
        self.A = nn.Parameter(start.to(frozen.weight.device))
        self.B = nn.Parameter(torch.zeros(frozen.out_features, rank, device=frozen.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        updates = [linear(linear(x, a), b) for a, b in zip(self.A, self._parts_of_B(), strict=True)]
        return self.linear(x) + self.alpha * torch.cat(updates, dim=-1)

    def _parts_of_B(self) -> tuple[Tensor, ...]:
        return self.B.split(self.parts)

    def merged(self) -> Linear:
        """The plain linear layer that computes the same."""
        with torch.no_grad():
            update = torch.cat([matmul(b, a) for a, b in zip(self.A, self._parts_of_B(), strict=True)])  # (C_out, C_in)
            self.linear.weight += self.alpha * update
        return self.linear


def apply_lora(model: nn.Module, params: LoRAParams | None, seed: int, new_head: nn.Module | None = None) -> None:
    """Freeze `model` and put a LoRALinear in place of each linear layer that `params.layers` names; None: do nothing.

    A tied language-model head is left alone: merging would change the token embedding with it. new_head: of the model,
    trained as a whole unless it gets a LoRALinear.
    """
    if params is None:
        return
    model.requires_grad_(False)
    if new_head is not None and params.layers != "all":
        new_head.requires_grad_(True)
    with drawing_from(stream(seed, "lora")):
        for path, module in [*model.named_modules()]:
            if isinstance(module, Linear) and _chosen(path, params.layers) and not _tied(model, module):
                model.set_submodule(path, LoRALinear(module, params.rank, params.alpha))


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The low-rank matrices by parameter name, and `alpha`: all that differs from the base model in frozen layers.

    Empty if the model has none.
    """
    layers = {path: module for path, module in model.named_modules() if isinstance(module, LoRALinear)}
    state = {f"{path}.{name}": getattr(layer, name).detach() for path, layer in layers.items() for name in ("A", "B")}
    for layer in layers.values():  # which all have the same
        state["alpha"] = torch.tensor(layer.alpha, dtype=torch.float64)
    return state


def merge_lora(model: nn.Module) -> dict[str, Tensor]:
    """Fold every update into its weight, and return what adapter_state returned before.

    The model has plain layers again and computes the same.
    """
    adapter = adapter_state(model)
    for path, module in [*model.named_modules()]:
        if isinstance(module, LoRALinear):
            model.set_submodule(path, module.merged())
    return adapter


def _chosen(path: str, layers: str) -> bool:
    parts = path.split(".")
    return layers == "all" or ("blocks" in parts and (layers == "blocks" or layers in parts))


def _tied(model: nn.Module, linear: nn.Linear) -> bool:
    return any(isinstance(m, nn.Embedding) and m.weight is linear.weight for m in model.modules())
