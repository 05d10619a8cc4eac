"""A GPT with a classification head in place of the language-model head. The book's chapter 6."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from scratchlm.model.gpt import GPTModel
from scratchlm.model.packing import Packing

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

    def forward(self, texts: Tensor, lengths: Tensor) -> Tensor:
        """Class logits, (B, n_classes).

        texts: (B, T) int64, padded at the end, with lengths (B,) int64 of real tokens; or what `encode` made of them
        with n_frozen_blocks.
        """
        n_blocks = self.n_frozen_blocks if texts.is_floating_point() else 0
        states, lengths = (texts, lengths) if n_blocks else self.encode(texts, lengths, 0)
        packing = Packing(lengths)
        if self.position == "mean":
            hidden = packing.pad(self.trunk.finish(states, packing, n_blocks))  # (B, T, C)
            return self.head(hidden.sum(dim=1) / lengths[:, None])
        return self.head(self.trunk.finish(states, packing, n_blocks, columns=lengths - 1))

    def encode(self, token_ids: Tensor, lengths: Tensor, n_blocks: int) -> tuple[Tensor, Tensor]:
        """What the first `n_blocks` make of the tokens that matter: (B, T), (B,) -> (N, C), (B,).

        Of frozen blocks this stays the same as long as there is no dropout, so it can be computed once: see Texts.
        """
        needed = self._needed(lengths, token_ids.shape[1])
        packing = Packing(needed)
        return self.trunk.encode(packing.pack(token_ids), packing, n_blocks), needed

    @property
    def n_frozen_blocks(self) -> int:
        """How many blocks come before the first one that learns."""
        embeddings = (self.trunk.token_embedding.weight, self.trunk.position_embedding.weight)
        if any(weight.requires_grad for weight in embeddings):
            return 0
        learns = [any(p.requires_grad for p in block.parameters()) for block in self.trunk.blocks]
        return [*learns, True].index(True)

    def _needed(self, lengths: Tensor, width: int) -> Tensor:
        """Tokens of each text that the pooled position sees: (B,) -> (B,)."""
        if self.position == "first":
            return torch.ones_like(lengths)
        return torch.full_like(lengths, width) if self.position == "last" else lengths


class Texts:
    """Texts to classify and, after `remember`, what a classifier's frozen blocks make of each."""

    def __init__(self, token_ids: Tensor, lengths: Tensor) -> None:
        """token_ids: (M, T) int64, padded at the end; lengths: (M,) int64 real tokens."""
        self.token_ids, self.lengths = token_ids, lengths
        self._states: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.token_ids)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The first two arguments of GPTClassifier.forward for some of the texts."""
        if not self._states:
            return self.token_ids[indices], self.lengths[indices]
        states = [self._states[i] for i in indices]
        return torch.cat(states), torch.tensor([len(text) for text in states])

    @torch.no_grad()
    def remember(self, classifier: GPTClassifier, batch_size: int) -> None:
        """Run the frozen blocks once, for as long as they stay frozen; without any, nothing is remembered.

        The random streams are not touched.
        """
        if not (n_blocks := classifier.n_frozen_blocks):
            return
        device, was_training = classifier.trunk.token_embedding.weight.device, classifier.training
        classifier.eval()
        states: list[Tensor] = []
        for token_ids, lengths in zip(self.token_ids.split(batch_size), self.lengths.split(batch_size), strict=True):
            encoded, needed = classifier.encode(token_ids.to(device), lengths.to(device), n_blocks)
            states += encoded.split(needed.tolist())
        classifier.train(was_training)
        self._states = states


def freeze(classifier: GPTClassifier, trainable: Trainable) -> None:
    """Let only the named part learn: the head always, the final norm with any block (as the book does)."""
    n_blocks = {"head": 0, "last_block": 1, "last_two_blocks": 2}.get(trainable)
    classifier.requires_grad_(n_blocks is None)
    classifier.head.requires_grad_(True)
    if n_blocks:
        classifier.trunk.final_norm.requires_grad_(True)
        for block in classifier.trunk.blocks[-n_blocks:]:
            block.requires_grad_(True)
