"""What training minimises. Every loss is a sum with the number of scored items, so that means are exact."""

from torch import Tensor
from torch.nn import functional as F

from scratchlm.data.tokenizer import IGNORE_INDEX
from scratchlm.model.gpt import GPTModel, at_least_float32


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the next token, in nats per scored token.

    logits: (B, T, V) float; logits[:, t] predicts token t + 1.
    targets: (B, T) int64 in [0, V), or IGNORE_INDEX where nothing is scored.
    Raises ValueError if no target is scored: the mean would be 0/0.
    Source: Radford et al. 2019, section 2.
    """
    n_scored = int((targets != IGNORE_INDEX).sum())
    if not n_scored:
        raise ValueError("no target is scored, so there is no mean loss; shorten the prompts or widen the context")
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX)


def summed_next_token_loss(model: GPTModel, inputs: Tensor, targets: Tensor) -> Tensor:
    """next_token_loss times the number of scored tokens: (B, T), (B, T) -> scalar, in nats.

    Logits are made only where something is scored: over a large vocabulary the head is most of the work.
    """
    hidden, scored = model.hidden_states(inputs).flatten(0, 1), targets.flatten()  # (B * T, C), (B * T,)
    if (keep := scored != IGNORE_INDEX).sum() < len(scored):
        hidden, scored = hidden[keep], scored[keep]
    return F.cross_entropy(at_least_float32(model.head(hidden)), scored, reduction="sum")
