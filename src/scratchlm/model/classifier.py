"""A GPT with a classification head in place of the language-model head. The book's chapter 6."""

from typing import Literal

import torch
from torch import Tensor, nn

from scratchlm.arithmetic.functions import total
from scratchlm.arithmetic.layers import Linear
from scratchlm.model.gpt import GPTModel

Position = Literal["first", "last", "last_real", "mean"]
Trainable = Literal["head", "last_block", "last_two_blocks", "all"]


class GPTClassifier(nn.Module):
    """Class logits from one pooled position of a GPT's final hidden states.

    position: `last` reads the last column, padding or not; `last_real` each text's own last token;
    `mean` averages the text's own tokens; `first` reads the first token.
    """

    def __init__(self, backbone: GPTModel, n_classes: int, position: Position) -> None:
        super().__init__()
        self.backbone = backbone
        self.backbone.head = nn.Identity()  # type: ignore[assignment]  # not used here; this drops its weights
        self.head = Linear(backbone.config.emb_dim, n_classes)
        self.position = position

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """Class logits: (B, T) int64, padded at the end, (B,) int64 real tokens -> (B, n_classes)."""
        return self.head(self.pool(self.backbone.hidden_states(token_ids), lengths))

    def pool(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, C) -> (B, C)."""
        columns = torch.arange(hidden.shape[1], device=hidden.device)
        if self.position == "mean":
            is_real = columns < lengths[:, None]  # (B, T)
            return total(hidden * is_real[..., None], dim=1) / lengths[:, None]
        column = {"first": torch.zeros_like(lengths), "last": columns[-1:], "last_real": lengths - 1}[self.position]
        return hidden[torch.arange(len(hidden), device=hidden.device), column]


def freeze(classifier: GPTClassifier, trainable: Trainable) -> None:
    """Make only the named part trainable: the head always, the final norm with any block (as the book does)."""
    n_blocks = {"head": 0, "last_block": 1, "last_two_blocks": 2}.get(trainable)  # None: all
    classifier.requires_grad_(n_blocks is None)
    classifier.head.requires_grad_(True)
    if n_blocks:
        classifier.backbone.final_norm.requires_grad_(True)
        for block in classifier.backbone.blocks[-n_blocks:]:
            block.requires_grad_(True)
