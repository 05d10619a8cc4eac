"""A GPT that rates a text with one number: a reward model. Ouyang et al. 2022, section 3.5."""

import torch
from torch import Tensor, nn

from scratchlm.arithmetic.layers import Linear
from scratchlm.model.gpt import GPTModel


class RewardModel(nn.Module):
    """The reward of a prompt with a response, from the final hidden state of the response's last token.

    That state predicts the end token: of all states, an assistant trained this one to tell whether the response is
    complete. The end token itself is not read, because it was never an input of the assistant's training.
    The head has no bias, because the loss only sees differences of rewards. It starts at zero: so do all rewards.
    `origin` is subtracted, so that reward 0 has a meaning; see tasks.reward.
    """

    origin: Tensor  # (), float32

    def __init__(self, backbone: GPTModel) -> None:
        super().__init__()
        self.backbone = backbone
        self.backbone.head = nn.Identity()  # type: ignore[assignment]  # not used here; this drops its weights
        self.head = Linear(backbone.config.emb_dim, 1, bias=False)
        nn.init.zeros_(self.head.weight)
        self.register_buffer("origin", torch.zeros(()))

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """Rewards: (B, T) int64, padded at the end, (B,) int64 real tokens -> (B,) float64 on the CPU."""
        hidden = self.backbone.hidden_states(token_ids)
        return self.read(hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1])

    def read(self, states: Tensor) -> Tensor:
        """Rewards from the last tokens' hidden states: (B, C) -> (B,) float64 on the CPU.

        bfloat16, which autocast would take, has eight bits: too few for differences of rewards.
        """
        with torch.autocast(states.device.type, enabled=False):
            rewards = self.head(states.float()).squeeze(-1)
        return rewards.cpu().double() - self.origin.cpu().double()
