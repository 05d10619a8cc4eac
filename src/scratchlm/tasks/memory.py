"""The memory that a training of params.yaml certainly needs, and whether the device has it."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from scratchlm.model.config import GPTConfig
from scratchlm.run.device import memory_bytes
from scratchlm.tasks.reinforce import ReinforceParams
from scratchlm.training.memory import FLOAT32, least_bytes, rollout_bytes

TENTHS = 10 / 2**30  # of a GiB, per byte


class Training(NamedTuple):
    """A training of a model. n_tokens: of each row, at least. all_train: whether all weights train.

    has_reward_model: of reinforcement learning, whether a reward model scores the responses.
    """

    section: str
    base: str
    config: GPTConfig
    params: Any
    n_tokens: int
    all_train: bool
    has_reward_model: bool

    def needed_bytes(self, device: str, compile_: bool) -> int:
        """The bytes that exist at once on the device, at least.

        Reinforcement learning also holds the assistant, unchanged, perhaps a reward model, and what sampling holds,
        when the optimizer's moments exist already.
        """
        p, weights = self.params, FLOAT32 * self.config.n_parameters
        is_reinforcement = isinstance(p, ReinforceParams)
        n_rows = min(p.batch_size * (p.responses_per_prompt if is_reinforcement else 1), p.max_micro_batch_size)
        keeps_little = p.checkpoint_activations or compile_  # the compiler decides what to recompute
        update = least_bytes(self.config, n_rows * self.n_tokens, keeps_little) if self.all_train else weights
        if not is_reinforcement:
            return update
        rollout = rollout_bytes(self.config, p.n_sampled_at_once(device), p.max_new_tokens, device)
        headless = self.config.model_copy(update={"tied_head": True})
        others = weights + (FLOAT32 * headless.n_parameters if self.has_reward_model else 0)
        return others + max(update, (3 if self.all_train else 1) * weights + rollout)


def shortage(training: Training, device: str, compile_: bool) -> Iterator[str]:
    """Yield a sentence if the device has less memory than the training needs."""
    n_bytes, available, p = training.needed_bytes(device, compile_), memory_bytes(device), training.params
    if n_bytes > available:
        model = f"{training.base} ({training.config.n_parameters:,} parameters)"
        needed, there = math.ceil(n_bytes * TENTHS) / 10, math.floor(available * TENTHS) / 10
        sizes = "batch_size, responses_per_prompt" if isinstance(p, ReinforceParams) else "its context"
        yield (
            f"{training.section} of {model} needs at least {needed:,.1f} GiB of memory, but {device} has {there:,.1f}; "
            f"lower the model's size, {sizes} or max_micro_batch_size"
            f"{', or set checkpoint_activations' if training.all_train and not p.checkpoint_activations else ''}"
        )
