"""Whether a device gives the same bits twice, found by trying.

torch's deterministic mode is incomplete on MPS: up to 2.13, it lets gradients of an embedding through whose rows are
added in any order (pytorch issue 195404); later versions raise errors. What works depends on version and processor.
"""

import torch

from scratchlm.data.tokenizer import IGNORE_INDEX
from scratchlm.model.config import gpt2_config
from scratchlm.model.gpt import build_model
from scratchlm.run.context import Run
from scratchlm.run.errors import UserError
from scratchlm.training.losses import summed_next_token_loss

REPEATS = 5
N_TOKENS = 64


def check_repeatable(device: str, precision: str) -> None:
    """Raise UserError if a small training step raises an error on the device or gives other gradients each time."""
    deterministic = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("error")
    reason = ""
    try:
        first, *others = [_gradients(device, precision) for _ in range(REPEATS)]
        is_same = all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))
    except RuntimeError as error:  # of an operation that torch does not have there, or not deterministically
        is_same, reason = False, f" ({str(error).splitlines()[0]})"
    finally:
        torch.set_deterministic_debug_mode(deterministic)
    if not is_same:
        raise UserError(
            f"device is '{device}', where torch {torch.__version__} cannot repeat a training step in {precision} to "
            f"the same bits{reason}; set device to cpu"
        )


def _gradients(device: str, precision: str) -> list[torch.Tensor]:
    """Of rows of different lengths whose tokens repeat."""
    model = build_model(gpt2_config("nano", 64, N_TOKENS), seed=0).to(device)
    inputs = (torch.arange(8 * N_TOKENS) % 7).view(8, N_TOKENS)
    is_scored = torch.arange(N_TOKENS) < N_TOKENS // 8 * torch.arange(1, 9)[:, None]
    inputs, targets = inputs.to(device), inputs.where(is_scored, IGNORE_INDEX).to(device)
    with Run(device=device, precision=precision).autocast():
        loss = summed_next_token_loss(model, inputs, targets)
    loss.backward()
    return [weight.grad.cpu() for weight in model.parameters() if weight.grad is not None]
