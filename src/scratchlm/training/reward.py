"""Rewards of texts, computed without padding and with the last block only at the token that is read."""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from scratchlm.fast.varlen import VarlenLayout, embed, last_token_states
from scratchlm.model.reward import RewardModel
from scratchlm.training.evaluation import in_batches


def rewards(model: RewardModel, sequences: Sequence[Sequence[int]], batch_size: int = 32) -> Tensor:
    """The reward of each sequence, in order: N lists of token ids -> (N,) float64 on the CPU.

    A sequence is a prompt and a response, without the end token. In precision exact, the size of the batches changes
    nothing.
    Raises ValueError for an empty sequence and for one that is longer than the model's context.
    """
    if not all(sequences):
        raise ValueError("a sequence without tokens has no last token to read a reward from")
    if not sequences:
        return torch.empty(0, dtype=torch.float64)

    def found(some: Sequence[Sequence[int]]) -> tuple[Tensor]:
        return (last_token_rewards(model, *(x.to(model.origin.device) for x in join(some))),)

    return in_batches(model, found, sequences, batch_size)[0]


def last_token_rewards(model: RewardModel, token_ids: Tensor, lengths: Tensor) -> Tensor:
    """RewardModel.forward for B sequences one after another: (N,) int64, (B,) int64 -> (B,) float64 on the CPU."""
    layout = VarlenLayout(lengths)
    return model.read(last_token_states(model.backbone, embed(model.backbone, token_ids, layout), layout))


def join(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """The tokens of B sequences one after another, and their lengths: (N,) int64, (B,) int64."""
    return torch.tensor([*chain.from_iterable(sequences)]), torch.tensor([len(sequence) for sequence in sequences])
