"""Training a reward model on preferences, from the assistant. Ouyang et al. 2022, section 3.5."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from scratchlm.arithmetic.functions import total
from scratchlm.model.config import Probability
from scratchlm.model.gpt import GPTModel
from scratchlm.model.lora import LoRAParams, apply_lora
from scratchlm.model.reward import RewardModel
from scratchlm.tasks.calibration import calibration_bins, calibration_error
from scratchlm.tasks.preference import Preferences, pair_metrics
from scratchlm.tasks.settings import EvaluationParams
from scratchlm.training.loop import Batch, Task
from scratchlm.training.optimizer import TrainingParams
from scratchlm.training.preference import preference_losses
from scratchlm.training.reward import join, last_token_rewards, rewards

NUMBERS = ("loss", "chosen_reward", "rejected_reward")
REWARD_SCHEMA = pa.schema([("id", pa.string()), *((name, pa.float64()) for name in NUMBERS)])


class RewardModelParams(TrainingParams):
    """batch_size: pairs per step, of two sequences each. With `lora`, its matrices and the head train."""

    dropout: Probability
    lora: LoRAParams | None


def build_reward_model(assistant: GPTModel, params: RewardModelParams, seed: int) -> RewardModel:
    """A reward model on the assistant's blocks, with only what `params` names left to train."""
    model = RewardModel(assistant)
    apply_lora(model, params.lora, seed, model.head)
    return model


class RewardScores(NamedTuple):
    """What is measured of N pairs. rewards: of chosen and rejected, (N, 2); losses: (N,)."""

    rewards: np.ndarray
    losses: np.ndarray

    def metrics(self) -> dict[str, float]:
        """The means over pairs; see docs/metrics.md."""
        bins = calibration_bins((self.rewards[:, 0] - self.rewards[:, 1]).tolist())
        return pair_metrics(self.rewards, self.losses) | {"calibration_error": calibration_error(bins)}

    def rows(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """One record per pair, of REWARD_SCHEMA."""
        numbers = zip(self.losses.tolist(), *self.rewards.T.tolist(), strict=True)
        return [{"id": name, **dict(zip(NUMBERS, row, strict=True))} for name, row in zip(ids, numbers, strict=True)]


def pair_losses(found: Tensor) -> Tensor:
    """-ln σ(r_chosen - r_rejected): (P, 2) float64 -> (P,) float64. Ouyang et al. 2022, equation 1.

    The mathematics is DPO's, with the difference of rewards in place of β h. Source: Bradley and Terry 1952.
    """
    return preference_losses(found[:, 0] - found[:, 1], "dpo", beta=1.0, label_smoothing=0.0)


class RewardEvaluation:
    """Rewards and losses of pairs."""

    def __init__(self, pairs: Preferences, evaluation: EvaluationParams) -> None:
        self._pairs, self._evaluation = pairs, evaluation

    def evaluate(self, model: RewardModel) -> dict[str, float]:
        """As Preferences.sampled_metrics."""
        return self._pairs.sampled_metrics(self._evaluation, lambda *chosen: self._scores(model, *chosen).metrics())

    def full(self, model: RewardModel) -> dict[str, RewardScores]:
        """The scores of every pair of every split, after moving the model's origin.

        The chosen responses of the train split then have mean reward 0, as Stiennon et al. 2020 (section 3.4) do with
        their reference texts: the loss leaves the origin open, and reinforcement learning needs one.
        """
        found = {split: self._scores(model, split, range(len(rows))) for split, rows in self._pairs.splits.items()}
        before = model.origin.item()
        model.origin += total(torch.from_numpy(found["train"].rewards[:, 0])).item() / len(found["train"].rewards)
        moved = model.origin.item() - before
        return {split: scores._replace(rewards=scores.rewards - moved) for split, scores in found.items()}

    def _scores(self, model: RewardModel, split: str, indices: Sequence[int]) -> RewardScores:
        found = rewards(model, self._pairs.sequences(split, indices), self._evaluation.batch_size).view(-1, 2)
        return RewardScores(found.numpy(), pair_losses(found).numpy())


def reward_task(pairs: Preferences, params: RewardModelParams, evaluation: RewardEvaluation) -> Task:
    """The loop's task for the train split. Its loss waits for the CPU in each step, so it is not compiled."""

    def batch(indices: np.ndarray) -> Batch:
        return Batch(join(pairs.sequences("train", indices.tolist())), len(indices))

    def loss(model: RewardModel, token_ids: Tensor, lengths: Tensor) -> Tensor:
        return total(pair_losses(last_token_rewards(model, token_ids, lengths).view(-1, 2)))

    return Task("reward_model", params, len(pairs.splits["train"]), batch, loss, evaluation.evaluate, scored="pairs")
