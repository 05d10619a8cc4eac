"""Models with no trivial parameter, for what writes and reads them."""

from typing import TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def perturbed(model: Model, amount: float, seed: int = 2) -> Model:
    """Move every parameter, biases and norms too, so that none is zero or one; evaluation mode."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += amount * torch.randn(parameter.shape, generator=source)
    return model.eval()
