"""Start without torch's compiler.

Surprising: torch imports its compiler (torch._dynamo) in three places although nothing is compiled, which takes 0.85 s
of each stage (LOG.md):
- use_deterministic_algorithms; run/device.py sets the debug mode, which does the same;
- the meta device, where torch.nn.init and some operations such as torch.cat have only compiled forms: `shapes_only`;
- the optimizers, whose methods are wrapped to keep the compiler out: `AdamW`.
tests/pipeline/test_stage_imports.py asserts that a stage that loads, decodes and trains does not import it.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class AdamW(torch.optim.AdamW):
    """torch's own, with its methods as they are inside their wrappers."""

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


@contextmanager
def shapes_only() -> Iterator[None]:
    """Within the block, modules have shapes and no numbers (the meta device), to be given their weights later."""
    with torch.device("meta"), _NoInitialisation():
        yield


class _NoInitialisation(TorchFunctionMode):
    """torch.nn.init does nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"]
        return func(*args, **(kwargs or {}))
