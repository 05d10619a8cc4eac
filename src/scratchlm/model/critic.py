"""A language model that also says how much reward it expects: the actor and the critic of PPO in one."""

import torch
from torch import Tensor, nn

from scratchlm.arithmetic.layers import Linear
from scratchlm.model.gpt import GPTModel


class ActorCritic(nn.Module):
    """A GPT with a second head. It starts at zero, so that the critic first expects nothing.

    Source: Schulman et al. 2017, section 5 (parameters shared by policy and value).
    """

    def __init__(self, gpt: GPTModel) -> None:
        super().__init__()
        self.gpt = gpt
        self.value_head = Linear(gpt.config.emb_dim, 1).to(gpt.token_embedding.weight.device)
        for parameter in self.value_head.parameters():
            nn.init.zeros_(parameter)

    def values(self, hidden: Tensor) -> Tensor:
        """The reward that is still expected at each position: (K, C) hidden states -> (K,) float64 on the CPU.

        In float32 even under autocast, as in RewardModel.read: advantages are differences of values.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            return self.value_head(hidden.float()).squeeze(-1).cpu().to(torch.float64)


def actor_of(model: nn.Module) -> GPTModel:
    """The language model in it."""
    found = model.gpt if isinstance(model, ActorCritic) else model
    assert isinstance(found, GPTModel)
    return found
