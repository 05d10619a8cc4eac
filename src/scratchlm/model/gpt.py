"""GPT: embeddings, pre-norm transformer blocks, a head. Radford et al. 2019; the book's chapter 4."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from scratchlm.arithmetic.functions import gelu, layer_norm
from scratchlm.arithmetic.layers import Dropout, Embedding, Linear
from scratchlm.arithmetic.random import drawing_from, fill_normal
from scratchlm.model.attention import KVCache, LayerCache, MultiHeadAttention
from scratchlm.model.config import GPTConfig
from scratchlm.model.variants import RMSNorm, SinusoidalEmbedding, SwiGLU

INITIAL_STANDARD_DEVIATION = 0.02  # Radford et al. 2018, section 4.1


class LayerNorm(nn.Module):
    """Zero mean and unit variance over channels, then a trained scale and shift. (…, C) -> (…, C).

    The variance is the biased one, as in GPT-2. Source: Ba et al. 2016.
    """

    def __init__(self, emb_dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.scale, self.shift)


def new_norm(config: GPTConfig) -> LayerNorm | RMSNorm:
    """The norm that the configuration names."""
    return LayerNorm(config.emb_dim) if config.norm == "layer" else RMSNorm(config.emb_dim)


class GELU(nn.Module):
    """x Φ(x) in the tanh approximation that GPT-2 was trained with. Source: Hendrycks and Gimpel 2016."""

    def forward(self, x: Tensor) -> Tensor:
        return gelu(x)


class FeedForward(nn.Module):
    """Two layers with a wider hidden one between, each position on its own. (B, T, C) -> (B, T, C)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        C, hidden = config.emb_dim, config.hidden_dim  # for GELU, 4 C
        parts = (hidden,) if config.feed_forward == "gelu" else (hidden, hidden)
        self.expansion = Linear(C, sum(parts), config.bias, parts)
        self.activation = GELU() if config.feed_forward == "gelu" else SwiGLU()
        self.projection = Linear(hidden, C, config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(self.activation(self.expansion(x)))


class TransformerBlock(nn.Module):
    """Attention and feed-forward, each normalised first and added to what came in. (B, T, C) -> (B, T, C)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(config)
        self.feed_forward = FeedForward(config)
        self.norm1 = new_norm(config)
        self.norm2 = new_norm(config)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), cache))
        return x + self.dropout(self.feed_forward(self.norm2(x)))


class GPTModel(nn.Module):
    """A decoder-only language model.

    Parameters are created in the book's order, so that torch's global seed 123 gives the published values.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = Embedding(config.vocab_size, config.emb_dim)
        if config.position != "rope":
            embedding = Embedding if config.position == "learned" else SinusoidalEmbedding
            self.position_embedding = embedding(config.context_length, config.emb_dim)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.n_layers))
        self.final_norm = new_norm(config)
        self.head = Linear(config.emb_dim, config.vocab_size, bias=False)
        if config.initialisation == "gpt2":
            self._initialise_as_gpt2()
        if config.tied_head:
            self.head.weight = self.token_embedding.weight

    def forward(self, token_ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """token_ids: (B, T) int64 -> logits (B, T, V).

        cache: holds what came before the tokens in each row, and afterwards the tokens too.
        Raises ValueError if a row becomes longer than the context.
        """
        return self.head(self.hidden_states(token_ids, cache))

    def hidden_states(self, token_ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """The final norm's output, from which the head makes logits: (B, T) -> (B, T, C)."""
        T = token_ids.shape[1]
        self.check_length(T + max(cache.lengths) if cache else T)
        device = token_ids.device
        positions = cache.advance(T, device) if cache else torch.arange(T, device=device).expand_as(token_ids)
        x = self.embed(token_ids, positions)
        for index, block in enumerate(self.blocks):
            x = block(x, cache.layers[index] if cache else None)
        return self.final_norm(x)

    def embed(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """Token plus position embeddings: (…,) int64 each -> (…, C). With rope, attention has the positions."""
        x = self.token_embedding(token_ids)
        if self.config.position != "rope":
            x = x + self.position_embedding(positions)
        return self.dropout(x)

    def next_logits(self, rows: Sequence[Sequence[int]], cache: KVCache | None = None) -> Tensor:
        """Logits of the token that follows each row, (B, V). An empty cache holds the rows afterwards."""
        device = self.token_embedding.weight.device
        lengths = [len(row) for row in rows]
        padded = pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)  # (B, T)
        logits = self(padded, cache)
        if cache:
            cache.lengths = lengths  # the padding does not count
        return logits[torch.arange(len(rows), device=device), torch.tensor(lengths, device=device) - 1]

    def check_length(self, n_tokens: int) -> None:
        """Raise ValueError if so many tokens are more than the context."""
        if self.config.context_length < n_tokens:
            raise ValueError(f"{n_tokens} tokens do not fit the model's context_length of {self.config.context_length}")

    def _initialise_as_gpt2(self) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                # N residual additions of unit variance would grow the sum by √N (Radford et al. 2019, section 2.3)
                residual = name.endswith("projection.weight")
                depth = math.sqrt(2 * self.config.n_layers) if residual else 1.0
                fill_normal(parameter, INITIAL_STANDARD_DEVIATION / depth)


def build_model(config: GPTConfig, seed: int) -> GPTModel:
    """A GPTModel with random weights drawn from `seed` alone; the global random stream stays as it was."""
    with drawing_from(seed):
        return GPTModel(config)


def parameter_count(model: nn.Module, *, trainable_only: bool = False) -> int:
    """Numbers in the model; a tied weight counts once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)
