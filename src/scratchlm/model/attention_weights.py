"""The attention weights of every layer and head, to look at. The model itself never keeps them."""

import torch
from torch import Tensor, nn

from scratchlm.arithmetic.functions import repeat_heads
from scratchlm.model.attention import MultiHeadAttention, causal_mask, eager_attention
from scratchlm.model.gpt import GPTModel


@torch.no_grad()
def attention_weights(model: GPTModel, token_ids: Tensor) -> Tensor:
    """Return softmax(q kᵀ / √D) of each layer and head for one text: (T,) int64 -> (L, H, T, T).

    Row t has the weights with which position t averages the values of positions 0..t; they sum to 1.
    Raises ValueError if the text is longer than the context.
    """
    found = []

    def record(attention: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        assert isinstance(attention, MultiHeadAttention)
        query, key, _ = attention.split_heads(attention.qkv(inputs[0]))  # (1, H, T, D), (1, K, T, D)
        key = repeat_heads(key, attention.n_heads // attention.n_kv_heads)
        identity = torch.eye(len(token_ids), dtype=query.dtype, device=query.device)  # values that are the weights
        mask = causal_mask(len(token_ids), query.device)
        found.append(eager_attention(query, key, identity.expand(*query.shape[:2], -1, -1), mask)[0])

    modules = (module for module in model.modules() if isinstance(module, MultiHeadAttention))
    hooks = [module.register_forward_hook(record) for module in modules]
    try:
        model.hidden_states(token_ids[None])
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(found)
