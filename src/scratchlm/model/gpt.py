"""GPT: embeddings, pre-norm transformer blocks, a head. Radford et al. 2019; the book's chapter 4."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scratchlm.model.attention import LayerCache, MultiHeadAttention
from scratchlm.model.config import GPTConfig
from scratchlm.model.packing import Packing

INITIAL_STANDARD_DEVIATION = 0.02  # Radford et al. 2018, section 4.1
LOGIT_NUMBERS = 1 << 26  # numbers in one block of logits: bounds memory over large vocabularies


class LayerNorm(nn.Module):
    """Zero mean and unit variance over channels, then a trained scale and shift. (…, C) -> (…, C).

    The variance is the biased one, as in GPT-2. Source: Ba et al. 2016.
    """

    def __init__(self, emb_dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.scale.shape, self.scale, self.shift, eps=1e-5)


class GELU(nn.Module):
    """x Φ(x) in the tanh approximation that GPT-2 was trained with. Source: Hendrycks and Gimpel 2016."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")


class FeedForward(nn.Module):
    """Two layers with a hidden width of 4 C, each position on its own. (B, T, C) -> (B, T, C)."""

    def __init__(self, emb_dim: int) -> None:
        super().__init__()
        self.expansion = nn.Linear(emb_dim, 4 * emb_dim)
        self.activation = GELU()
        self.projection = nn.Linear(4 * emb_dim, emb_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(self.activation(self.expansion(x)))


class TransformerBlock(nn.Module):
    """Attention and feed-forward, each normalised first and added to what came in. (B, T, C) -> (B, T, C)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(
            config.emb_dim, config.n_heads, config.dropout, config.qkv_bias, config.attention
        )
        self.feed_forward = FeedForward(config.emb_dim)
        self.norm1 = LayerNorm(config.emb_dim)
        self.norm2 = LayerNorm(config.emb_dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
        positions: Tensor | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """For the arguments see MultiHeadAttention; with a packing, (N, C) -> (N, C)."""
        x = x + self.dropout(self.attention(self.norm1(x), mask, cache, positions, packing))
        return x + self.dropout(self.feed_forward(self.norm2(x)))

    def read(self, x: Tensor, packing: Packing, columns: Tensor, cache: LayerCache | None = None) -> Tensor:
        """What `forward` gives at one position of each sequence, and no work for the others: (N, C) -> (B, C)."""
        attended = self.attention.read(self.norm1(x), packing, columns, cache)
        x = x[packing.starts + columns] + self.dropout(attended)
        return x + self.dropout(self.feed_forward(self.norm2(x)))


class GPTModel(nn.Module):
    """A decoder-only language model.

    Parameters are created in the book's order, so that torch.manual_seed(123) gives the published values.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.emb_dim)
        self.position_embedding = nn.Embedding(config.context_length, config.emb_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.n_layers))
        self.final_norm = LayerNorm(config.emb_dim)
        self.head = nn.Linear(config.emb_dim, config.vocab_size, bias=False)
        if config.initialisation == "gpt2":
            self._initialise_as_gpt2()
        if config.tied_head:
            self.head.weight = self.token_embedding.weight

    def forward(self, token_ids: Tensor) -> Tensor:
        """token_ids: (B, T) int64, T at most context_length -> logits (B, T, V).

        Raises ValueError if T is longer than the context.
        """
        return self.head(self.hidden_states(token_ids))

    def hidden_states(
        self,
        token_ids: Tensor,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        caches: Sequence[LayerCache] | None = None,
    ) -> Tensor:
        """The final norm's output for each token, (B, T) -> (B, T, C); the head makes logits of it.

        positions: (B, T) int64 where they are not 0..T-1; mask, caches: see MultiHeadAttention.
        """
        T = token_ids.shape[1]
        self._refuse_more_than_context(T)
        places = torch.arange(T, device=token_ids.device) if positions is None else positions
        x = self.dropout(self.token_embedding(token_ids) + self.position_embedding(places))
        for index, block in enumerate(self.blocks):
            x = block(x, mask, caches[index] if caches else None, positions)
        return self.final_norm(x)

    def packed_states(
        self,
        token_ids: Tensor,
        packing: Packing,
        columns: Tensor | None = None,
        caches: Sequence[LayerCache] | None = None,
    ) -> Tensor:
        """hidden_states of packed sequences: (N,) int64 -> (N, C), with columns (B, C): see `finish`."""
        return self.finish(self.encode(token_ids, packing, 0), packing, 0, columns, caches)

    def encode(self, token_ids: Tensor, packing: Packing, n_blocks: int) -> Tensor:
        """What the embeddings and the first `n_blocks` make of packed tokens: (N,) int64 -> (N, C)."""
        self._refuse_more_than_context(packing.width)
        x = self.dropout(self.token_embedding(token_ids) + self.position_embedding(packing.positions))
        for block in self.blocks[:n_blocks]:
            x = block(x, packing=packing)
        return x

    def finish(
        self,
        x: Tensor,
        packing: Packing,
        n_blocks: int,
        columns: Tensor | None = None,
        caches: Sequence[LayerCache] | None = None,
    ) -> Tensor:
        """The other blocks and the final norm on what `encode` gave: (N, C) -> (N, C).

        columns: (B,) int64, the one position of each sequence that is asked for -> (B, C).
        caches: one for each block, empty; those of the other blocks are filled.
        """
        last = len(self.blocks) - 1
        for index in range(n_blocks, len(self.blocks)):
            block, cache = self.blocks[index], caches[index] if caches else None
            if index == last and columns is not None:
                return self.final_norm(block.read(x, packing, columns, cache))  # type: ignore[operator]
            x = block(x, cache=cache, packing=packing)
        return self.final_norm(x if columns is None else x[packing.starts + columns])

    def _refuse_more_than_context(self, n_tokens: int) -> None:
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
                nn.init.normal_(parameter, std=INITIAL_STANDARD_DEVIATION / depth)


def logit_rows(vocab_size: int) -> int:
    """Positions whose logits are held at a time."""
    return max(1, LOGIT_NUMBERS // vocab_size)


def at_least_float32(logits: Tensor) -> Tensor:
    """Logits as a loss needs them: on the CPU, autocast would compute it in bfloat16, whose eight bits are too few."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def build_model(config: GPTConfig, seed: int) -> GPTModel:
    """A GPTModel with random weights drawn from `seed` alone; the global random stream stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return GPTModel(config)


def parameter_count(model: nn.Module, *, trainable_only: bool = False) -> int:
    """Numbers in the model; a tied weight counts once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)
