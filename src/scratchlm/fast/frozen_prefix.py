"""Classification that runs frozen blocks once, not once per epoch, and the last block only where it is read.

Surprising: while a classifier trains, the blocks before the first trainable one give the same output for the same text
in every step, as long as there is no dropout. `Texts` keeps that output and later batches start from it.

Pays: the book's spam experiment (124M, last block trained, five epochs) is 10.2 times as fast as the book's code in
float32 (LOG.md). With 124M in bfloat16, every class and all printed digits of the losses are those of running the
blocks in each step. Equal to GPTClassifier.forward: tests/unit/fast/test_frozen_prefix.py.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from scratchlm.arithmetic.functions import total
from scratchlm.fast.cuda_graphs import CapturedFunction, CapturedModel
from scratchlm.fast.varlen import VarlenLayout, embed, last_token_states, normalise, run_blocks
from scratchlm.model.classifier import GPTClassifier
from scratchlm.model.gpt import evaluating

CACHED_BYTES = 4 << 30  # at most this much output of frozen blocks


class Texts:
    """Texts to classify and, after cache_frozen_blocks, the output of a classifier's frozen blocks for each."""

    def __init__(self, token_ids: Tensor, lengths: Tensor) -> None:
        """token_ids: (M, T) int64, padded at the end; lengths: (M,) int64 real tokens."""
        self.token_ids, self.lengths = token_ids, lengths
        self._n_blocks = 0
        self._states: list[Tensor] = []  # (length, C) of each text

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def are_cached(self) -> bool:
        """Whether batches start from the output of frozen blocks."""
        return bool(self._states)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The last two arguments of `class_logits` for some of the texts."""
        if not self._states:
            return self.token_ids[indices], self.lengths[indices]
        states = [self._states[i] for i in indices]
        return torch.cat(states), torch.tensor([len(text) for text in states])

    def class_logits(self, classifier: GPTClassifier, inputs: Tensor, lengths: Tensor) -> Tensor:
        """GPTClassifier.forward for a batch of these texts, without padding: (B, n_classes)."""
        if not self._states:
            inputs, lengths = _encode(classifier, inputs, lengths, 0)
        return _finish(classifier, inputs, lengths, self._n_blocks)

    def cache_frozen_blocks(self, classifier: GPTClassifier, batch_size: int) -> None:
        """Run the frozen blocks, if there are any, on every text; valid while they stay frozen. Draws nothing."""
        if not (n_blocks := n_frozen_blocks(classifier)):
            return
        device = classifier.backbone.token_embedding.weight.device
        states: list[Tensor] = []
        batches = zip(self.token_ids.split(batch_size), self.lengths.split(batch_size), strict=True)
        with evaluating(classifier):
            for token_ids, lengths in batches:
                encoded, read = _encode(classifier, token_ids.to(device), lengths.to(device), n_blocks)
                states += encoded.split(read.tolist())
        self._n_blocks, self._states = n_blocks, states

    def evaluated(self, classifier: GPTClassifier, indices: Sequence[int]) -> Tensor:
        """class_logits of some of the texts, on the CPU."""
        device = classifier.backbone.token_embedding.weight.device
        inputs, lengths = self.batch(indices)
        return self.class_logits(classifier, inputs.to(device), lengths.to(device)).cpu()


class PaddedTexts(Texts):
    """Texts for a GPU whose work is captured: every row is computed to its full width, so all batches have one shape.

    A batch of cached texts has their numbers, which are looked up in the output of the frozen blocks on the GPU.
    """

    def __init__(self, token_ids: Tensor, lengths: Tensor) -> None:
        super().__init__(token_ids, lengths)
        self._encoded: Tensor | None = None  # (M, T, C)
        self._captured_logits = CapturedModel(self.class_logits)

    @property
    def are_cached(self) -> bool:
        return self._encoded is not None

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        inputs = self.token_ids[indices] if self._encoded is None else torch.tensor(indices)
        return inputs, self.lengths[indices]

    def class_logits(self, classifier: GPTClassifier, inputs: Tensor, lengths: Tensor) -> Tensor:
        if self._encoded is None:
            return classifier(inputs, lengths)
        x, backbone = self._encoded[inputs], classifier.backbone
        for block in backbone.blocks[self._n_blocks :]:
            x = backbone.run_block(block, x)
        return classifier.head(classifier.pool(backbone.final_norm(x), lengths))

    def cache_frozen_blocks(self, classifier: GPTClassifier, batch_size: int) -> None:
        if not (n_blocks := n_frozen_blocks(classifier)):
            return
        backbone = classifier.backbone
        device = backbone.token_embedding.weight.device

        def encoded(token_ids: Tensor) -> Tensor:
            x = backbone.embed(token_ids, torch.arange(token_ids.shape[1], device=device).expand_as(token_ids))
            for block in backbone.blocks[:n_blocks]:
                x = block(x)
            return x

        captured = CapturedFunction(encoded, device)
        with evaluating(classifier):
            states = [captured(token_ids).clone() for token_ids in self.token_ids.split(batch_size)]
        self._n_blocks, self._encoded = n_blocks, torch.cat(states)

    def evaluated(self, classifier: GPTClassifier, indices: Sequence[int]) -> Tensor:
        return self._captured_logits(classifier, *self.batch(indices)).cpu()


def n_frozen_blocks(classifier: GPTClassifier) -> int:
    """Blocks before the first one that learns; none if the embeddings learn."""
    embeddings = [w for name, w in classifier.backbone.named_parameters() if "_embedding." in name]
    if any(weight.requires_grad for weight in embeddings):
        return 0
    learns = [any(p.requires_grad for p in block.parameters()) for block in classifier.backbone.blocks]
    return [*learns, True].index(True)


def worth_caching(classifier: GPTClassifier, texts: Iterable[Texts]) -> bool:
    """Whether frozen blocks give the same in every epoch, and their output fits into memory."""
    config = classifier.backbone.config
    n_bytes = 4 * config.emb_dim * sum(found.token_ids.numel() for found in texts)
    return config.dropout == 0 and n_bytes <= CACHED_BYTES


def _encode(classifier: GPTClassifier, token_ids: Tensor, lengths: Tensor, n_blocks: int) -> tuple[Tensor, Tensor]:
    """The first `n_blocks` on the tokens up to the one that is read: (B, T), (B,) -> (N, C), their numbers (B,)."""
    if classifier.position == "first":
        lengths = torch.ones_like(lengths)
    elif classifier.position == "last":
        lengths = torch.full_like(lengths, token_ids.shape[1])
    layout = VarlenLayout(lengths)
    x = embed(classifier.backbone, layout.unpad(token_ids), layout)
    return run_blocks(classifier.backbone, x, layout, 0, n_blocks), lengths


def _finish(classifier: GPTClassifier, x: Tensor, lengths: Tensor, n_blocks: int) -> Tensor:
    """The other blocks, the pooling and the head on what `_encode` gave: (N, C), (B,) -> (B, n_classes)."""
    layout, model = VarlenLayout(lengths), classifier.backbone
    if classifier.position == "mean":
        x = normalise(model, run_blocks(model, x, layout, n_blocks, len(model.blocks)), layout)
        return classifier.head(total(layout.pad(x), dim=1) / lengths[:, None])
    return classifier.head(last_token_states(model, x, layout, n_blocks))
