"""A GPT with a classification head in place of the language-model head. The book's chapter 6."""

from typing import Literal

import torch
from torch import Tensor, nn

from scratchlm.model.gpt import GPTModel

Position = Literal["first", "last", "last_real", "mean"]
Trainable = Literal["head", "last_block", "last_two_blocks", "all"]


class GPTClassifier(nn.Module):
    """Class logits from one pooled position of a GPT's final hidden states.

    position: `last` reads the last column, padding or not; `last_real` each text's own last token;
    `mean` averages the text's own tokens; `first` reads the first token.
    """

    def __init__(self, trunk: GPTModel, n_classes: int, position: Position) -> None:
        super().__init__()
        self.trunk = trunk
        self.trunk.head = nn.Identity()  # type: ignore[assignment]
        self.head = nn.Linear(trunk.config.emb_dim, n_classes)
        self.position = position

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """token_ids: (B, T) int64, padded at the end; lengths: (B,) int64 real tokens -> logits (B, n_classes)."""
        hidden = self.trunk.hidden_states(token_ids)  # (B, T, C)
        return self.head(pool(hidden, lengths, self.position))


def pool(hidden: Tensor, lengths: Tensor, position: Position) -> Tensor:
    """One vector per text: (B, T, C) hidden states and (B,) lengths -> (B, C)."""
    if position == "first":
        return hidden[:, 0]
    if position == "last":
        return hidden[:, -1]
    if position == "last_real":
        return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
    real = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]  # (B, T)
    return (hidden * real[..., None]).sum(dim=1) / lengths[:, None]


def freeze(classifier: GPTClassifier, trainable: Trainable) -> None:
    """Let only the named part learn: the head always, the final norm with any block (as the book does)."""
    n_blocks = {"head": 0, "last_block": 1, "last_two_blocks": 2}.get(trainable)
    classifier.requires_grad_(n_blocks is None)
    classifier.head.requires_grad_(True)
    if n_blocks:
        classifier.trunk.final_norm.requires_grad_(True)
        for block in classifier.trunk.blocks[-n_blocks:]:
            block.requires_grad_(True)
