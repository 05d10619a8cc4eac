"""Our tensors as those of another format, and back. names.py has the table."""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from scratchlm.arithmetic.layers import Linear
from scratchlm.fast.torch_startup import shapes_only
from scratchlm.formats.names import names_of, parts_of
from scratchlm.formats.native import gpt_of, type_name
from scratchlm.model.config import GPTConfig
from scratchlm.model.gpt import GPTModel
from scratchlm.run.errors import UserError

Format = Literal["openai", "huggingface", "gguf"]
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_REMEDY = "fetch or export it again"


def convert_weights(config: GPTConfig, theirs: dict[str, Tensor], format_: Format, source: str) -> GPTModel:
    """Return a model, in evaluation mode, made of another format's tensors.

    Empties `theirs` on the way, so that memory never holds a large model twice.
    Raises UserError naming `source` and the first missing, extra or misshapen tensor.
    """
    with shapes_only():
        model = GPTModel(config)
    expected, widths, weights = model.state_dict(), _widths(model), {}
    for name in names_of(config):
        wanted, their_names = tuple(expected[name.ours].shape), parts_of(getattr(name, format_))
        parts = widths[name.ours] if len(their_names) > 1 else wanted[:1]
        found = []
        for their_name, width in zip(their_names, parts, strict=True):
            shape = (width, *wanted[1:])
            if name.linear and format_ != "gguf":
                shape = (1, *shape[::-1]) if format_ == "openai" else shape[::-1]
            tensor = _take(theirs, their_name, shape, source)
            found.append(tensor.reshape(shape[-2:]).T if name.linear and format_ != "gguf" else tensor)
        weights[name.ours] = (found[0] if len(found) == 1 else torch.cat(found)).float().contiguous()
    if theirs:
        raise UserError(f"{source}: tensor {min(theirs)} belongs to no part of a model of this size; {_REMEDY}")
    return gpt_of(config, weights, source)


def _take(theirs: dict[str, Tensor], name: str, shape: tuple[int, ...], source: str) -> Tensor:
    if name not in theirs:
        raise UserError(f"{source}: tensor {name} is missing; {_REMEDY}")
    tensor = theirs.pop(name)
    if tensor.dtype not in FLOATS:
        kind = f"is of type {type_name(tensor)}, which no weights are without their scale"
        raise UserError(f"{source}: tensor {name} {kind}; save the model in float32, not quantised")
    if tuple(tensor.shape) != shape:
        differs = f"has shape {tuple(tensor.shape)}, but the configuration asks for {shape}"
        raise UserError(f"{source}: tensor {name} {differs}; take both from one checkpoint")
    return tensor


def their_tensors(model: GPTModel, format_: Format) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the value of each tensor of a model in another format.

    Query, key and value biases are zeros where a model like GPT-2 has none: the formats require them.
    Raises UserError if the format has no such models.
    """
    ours, widths = model.state_dict(), _widths(model)
    for name in names_of(model.config):
        tensor, their_names = ours.get(name.ours), parts_of(getattr(name, format_))
        if tensor is None:
            tensor = torch.zeros(3 * model.config.emb_dim)
        if name.linear and format_ != "gguf":
            tensor = tensor.T[None] if format_ == "openai" else tensor.T
        parts = tensor.split(widths[name.ours]) if len(their_names) > 1 else [tensor]
        for their_name, part in zip(their_names, parts, strict=True):
            yield their_name, part.contiguous()


def _widths(model: GPTModel) -> dict[str, tuple[int, ...]]:
    """The rows of each part, by the name of the weight or bias that has several."""
    layers = [(path, layer.parts) for path, layer in model.named_modules() if isinstance(layer, Linear)]
    return {f"{path}.{tensor}": parts for path, parts in layers for tensor in ("weight", "bias")}
