"""Alternatives to GPT-2's parts, selected by `position`, `norm` and `feed_forward` of GPTConfig."""

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from scratchlm.arithmetic.elementary import exp, log, sin_cos
from scratchlm.arithmetic.functions import rms_norm, swiglu
from scratchlm.model.config import RopeScaling


class RMSNorm(nn.Module):
    """x / √(mean(x²) + ε) · scale over channels: (…, C) -> (…, C). Source: Zhang and Sennrich 2019."""

    def __init__(self, emb_dim: int, epsilon: float) -> None:
        super().__init__()
        self.epsilon, self.scale = epsilon, nn.Parameter(torch.ones(emb_dim))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.scale, self.epsilon)


class SwiGLU(nn.Module):
    """Split the input into a gate g and values u; return g σ(g) u, with σ the sigmoid: (…, 2 C) -> (…, C).

    Source: Shazeer 2020, equation 6.
    """

    def forward(self, x: Tensor) -> Tensor:
        return swiglu(x)


class SinusoidalEmbedding(nn.Module):
    """A fixed vector for each position: (…,) int64 -> (…, C). Source: Vaswani et al. 2017, section 3.5."""

    def __init__(self, n_positions: int, emb_dim: int) -> None:
        super().__init__()
        self.n_positions, self.emb_dim = n_positions, emb_dim

    def forward(self, positions: Tensor) -> Tensor:
        waves = sines_and_cosines(self.n_positions, self.emb_dim, 10_000.0, positions.device)
        # (…, C / 2) each -> (…, C): sines at even channels, cosines at odd ones
        return torch.stack([wave[positions] for wave in waves], dim=-1).flatten(-2)


class Rotation(nn.Module):
    """Rotary position embedding (rope): rotate queries and keys by angles proportional to their positions.

    A score then depends on positions only through their difference. Elements i and i + D / 2 of a head form a pair,
    rotated by position / base^(2 i / D). Source: Su et al. 2021, section 3.2.2, which pairs neighbouring elements.
    scaling: rotates some pairs more slowly (rope_factors).
    """

    def __init__(self, n_positions: int, head_dim: int, base: float, scaling: RopeScaling | None = None) -> None:
        super().__init__()
        self.n_positions, self.head_dim, self.base, self.scaling = n_positions, head_dim, base, scaling

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """(B, H, T, D), (B, T) or (T,) int64 -> (B, H, T, D)."""
        waves = sines_and_cosines(self.n_positions, self.head_dim, self.base, x.device, self.scaling)
        sine, cosine = (wave[positions].unsqueeze(-3) for wave in waves)  # (…, 1, T, D / 2)
        first, second = x.chunk(2, dim=-1)  # bfloat16 becomes float32 in the products
        rotated = torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
        return rotated.to(x.dtype)


def sines_and_cosines(
    n_positions: int, width: int, base: float, device: torch.device, scaling: RopeScaling | None = None
) -> tuple[Tensor, Tensor]:
    """Sine and cosine of position / base^(2 i / width): (n_positions, width / 2) each, the same on every machine."""
    return _cached_waves(n_positions, width, base, device, scaling)


@lru_cache(maxsize=4)
def _cached_waves(
    n_positions: int, width: int, base: float, device: torch.device, scaling: RopeScaling | None
) -> tuple[Tensor, Tensor]:
    frequencies = rope_frequencies(width, base)
    if scaling:
        frequencies = frequencies / rope_factors(frequencies, scaling)
    sine, cosine = sin_cos(torch.arange(n_positions, dtype=torch.float64)[:, None] * frequencies)
    return sine.float().to(device), cosine.float().to(device)


def rope_frequencies(width: int, base: float) -> Tensor:
    """base^(-2 i / width), in radians per position: (width / 2,) float64."""
    exponents = torch.arange(0, width, 2, dtype=torch.float64) / width
    return exp(-exponents * log(torch.tensor(base, dtype=torch.float64)))


def rope_factors(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """How many times as slowly each pair turns, from 1 to scaling.factor: (D / 2,) float64, like the frequencies.

    Source: Llama 3.1 (github.com/meta-llama/llama-models, models/llama3/model.py, apply_scaling).
    """
    turns = frequencies * scaling.original_context_length / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return 1.0 / (kept + (1.0 - kept) / scaling.factor)
