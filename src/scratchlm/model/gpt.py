"""GPT: embeddings, pre-norm transformer blocks, a head. Radford et al. 2019; the book's chapter 4.

Read attention.py (chapter 3) first. config.py, variants.py and cache.py can wait: unless a configuration says
otherwise, every part is GPT-2's. The formulas of softmax, layer_norm and gelu are in arithmetic/functions.py.
Letters: B batch, T time, C channels, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from scratchlm.arithmetic.checkpointing import checkpointed
from scratchlm.arithmetic.functions import gelu, layer_norm, residual_stream
from scratchlm.arithmetic.layers import Dropout, Embedding, Linear
from scratchlm.arithmetic.random import drawing_from, fill_normal
from scratchlm.model.attention import MultiHeadAttention
from scratchlm.model.cache import KVCache, LayerCache
from scratchlm.model.config import GPTConfig
from scratchlm.model.variants import RMSNorm, SinusoidalEmbedding, SwiGLU

INITIAL_STANDARD_DEVIATION = 0.02  # Radford et al. 2018, section 4.1


class LayerNorm(nn.Module):
    """(x - mean) / √(variance + 1e-5) · scale + shift over channels: (…, C) -> (…, C).

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
    return LayerNorm(config.emb_dim) if config.norm == "layer" else RMSNorm(config.emb_dim, config.rms_epsilon)


class GELU(nn.Module):
    """x Φ(x) in the tanh approximation that GPT-2 was trained with. Source: Hendrycks and Gimpel 2016."""

    def forward(self, x: Tensor) -> Tensor:
        return gelu(x)


class FeedForward(nn.Module):
    """Two linear layers with a wider hidden layer between, applied to each position separately: (B, T, C) twice."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        C, hidden = config.emb_dim, config.hidden_dim  # for GELU, 4 C
        gated = config.feed_forward == "swiglu"
        parts = (hidden, hidden) if gated else (hidden,)  # SwiGLU has two layers, computed as one
        self.expansion = Linear(C, sum(parts), config.bias, parts=parts)
        self.activation = SwiGLU() if gated else GELU()
        self.projection = Linear(hidden, C, config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(self.activation(self.expansion(x)))


class TransformerBlock(nn.Module):
    """Attention, then feed-forward, each on the normalised input, with a residual connection: (B, T, C) twice."""

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

    Parameters are created in the book's order, so that torch's global seed 123 gives the book's values (initialisation
    `torch`, untied head, GPT-2's parts, not precision exact).
    """

    checkpoint_activations = False  # of the blocks; a training sets it

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

        cache: keys and values of each row's earlier tokens; the call appends those of token_ids. None: no earlier
        tokens, as in the book.
        Raises ValueError if a row becomes longer than the context.
        """
        return self.head(self.hidden_states(token_ids, cache))

    def hidden_states(self, token_ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """The final norm's output, from which the head makes logits: (B, T) -> (B, T, C)."""
        T = token_ids.shape[1]
        n_cached = 0 if cache is None else max(cache.lengths)
        self.check_length(n_cached + T)
        device = token_ids.device
        positions = torch.arange(T, device=device).expand_as(token_ids) if cache is None else cache.advance(T, device)
        x = self.embed(token_ids, positions)
        for index, block in enumerate(self.blocks):
            x = self.run_block(partial(block, cache=None if cache is None else cache.layers[index]), x)
        return self.final_norm(x)

    def run_block(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """function(x), a block's work. With checkpoint_activations, the backward pass computes it a second time."""
        if self.checkpoint_activations and torch.is_grad_enabled():
            return checkpointed(function, x, draws=self.config.dropout > 0)
        return function(x)

    def embed(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """Token plus position embeddings: (…,) int64 each -> (…, C). With rope, positions enter in attention."""
        x = self.token_embedding(token_ids)
        if self.config.position != "rope":
            x = x + self.position_embedding(positions)
        return self.dropout(residual_stream(x))

    def next_logits(self, rows: Sequence[Sequence[int]], cache: KVCache | None = None) -> Tensor:
        """Logits of the token that follows each row, (B, V). An empty cache holds the rows afterwards."""
        device = self.token_embedding.weight.device
        lengths = [len(row) for row in rows]
        padded = pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)  # (B, T)
        logits = self(padded, cache)
        if cache is not None:
            cache.lengths = lengths  # exclude the padding
        return logits[torch.arange(len(rows), device=device), torch.tensor(lengths, device=device) - 1]

    def new_cache(self, n_rows: int) -> KVCache:
        """An empty KV cache for `n_rows` rows."""
        return KVCache(len(self.blocks), n_rows, self.config.context_length)

    def check_length(self, n_tokens: int) -> None:
        """Raise ValueError if n_tokens exceeds context_length."""
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


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within the block the model is in evaluation mode, without gradients; afterwards in the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def parameter_count(model: nn.Module, *, trainable_only: bool = False) -> int:
    """The number of parameters; a tied weight counts once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)
