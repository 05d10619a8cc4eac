"""The memory of a training step on a GPU, from the model's shape and the micro batch alone.

Counts what training/loop.py holds at once, without a compiler: float32 weights, gradients and AdamW's two moments;
under autocast a bfloat16 copy of each matrix; what each block keeps for its gradients; a block of logits. It is within
3 % of the storages that exist in a step on the CPU (tests/unit/training/test_memory.py), and within 1 % of what torch
allocated for one on an H100 (docs/gpu.md). It is for GPT-2's parts, torch's fused attention and rows of one length;
other parts keep more.
"""

from typing import NamedTuple

from scratchlm.model.config import GPTConfig
from scratchlm.training.losses import LOGITS_AT_ONCE

FLOAT32 = 4
PRODUCT_BYTES = {"float32": 4, "bfloat16": 2}  # of a number that a matrix product takes or gives
WORKSPACE_BYTES = 2 * 8 * 4096 * 1024  # of cuBLAS, by CUBLAS_WORKSPACE_CONFIG=:4096:8 in two threads


class Step(NamedTuple):
    """A micro batch: n_rows of n_tokens each. accumulates: whether others of its optimizer step came before it."""

    n_rows: int
    n_tokens: int
    precision: str = "bfloat16"
    checkpoint: bool = False
    accumulates: bool = False


class TrainingMemory(NamedTuple):
    """Bytes. weights: in float32; their gradients take as much, their two moments twice as much.

    activations: what the backward pass needs of the forward pass. at_*: all that exists while the last block of logits
    gives its gradients, in the backward pass of the last and of the first block, and when the embedding's gradient is
    there.
    """

    weights: int
    activations: int
    at_logits: int
    at_last_block: int
    at_first_block: int
    at_embedding: int

    @property
    def least(self) -> int:
        """What exists at once in any precision, on any device."""
        return 3 * self.weights + max(self.weights, self.activations)

    @property
    def peak(self) -> int:
        return max(self.at_logits, self.at_last_block, self.at_first_block, self.at_embedding) + WORKSPACE_BYTES


def training_memory(config: GPTConfig, step: Step) -> TrainingMemory:
    """The memory of a micro batch where the whole model is trained."""
    n, C, L, V = step.n_rows * step.n_tokens, config.emb_dim, config.n_layers, config.vocab_size
    product = PRODUCT_BYTES[step.precision]
    weights, head, block_weights = FLOAT32 * config.n_parameters, FLOAT32 * V * C, FLOAT32 * _numbers_of_a_block(config)
    copied = product / FLOAT32 if product < FLOAT32 else 0.0  # size of autocast's copy of a matrix
    copies = copied * block_weights
    fixed = (4 if step.accumulates else 3) * weights
    residual, block = FLOAT32 * n * C, n * block_bytes(config, step.precision)
    kept = L * (residual if step.checkpoint else block)
    activations = kept + residual  # the input of the final norm

    n_rows = min(n, max(1, LOGITS_AT_ONCE // V))
    logits = n_rows * V
    softmax, matrix = 3 * FLOAT32 * logits, product * logits + (1 + copied) * head  # to the logits, to the head
    at_logits = fixed + activations + copied * head + max(softmax, matrix)
    if n_rows < n:  # with gradients of the hidden states and of the head, before autocast drops its copies
        at_logits += L * copies + 2 * residual + (head if 2 * n_rows <= n else 0)
    elif not step.checkpoint:
        at_logits += L * copies + product * n * C

    # The gradients of the hidden layer, the most in a block, beside the residual's in two formats
    inner = residual + product * n * (C + config.hidden_dim) + (residual if step.checkpoint else 0)
    at_last_block = fixed + head + kept + inner + (block + copies if step.checkpoint else L * copies)
    others = 0 if step.accumulates else (L - 1) * block_weights
    at_first_block = fixed + head + others + block + inner + copies
    added = head * (2 * config.tied_head + step.accumulates)  # a tied weight's two gradients beside their sum
    at_embedding = 4 * weights + added + residual
    moments = (at_logits, at_last_block, at_first_block, at_embedding)
    return TrainingMemory(weights, activations, *map(int, moments))


def block_bytes(config: GPTConfig, precision: str) -> int:
    """What a block keeps of each token for its gradients.

    The inputs of both norms in float32, with their mean and deviation; the inputs of four products; query, key and
    value; the hidden layer before its activation; attention's sums of exponentials, as logarithms.
    """
    query = config.n_heads * config.head_dim
    heads = query + 2 * config.n_kv_heads * config.head_dim
    inner = config.hidden_dim * (2 if config.feed_forward == "swiglu" else 1)
    products = 2 * config.emb_dim + heads + query + inner + config.hidden_dim
    statistics = 2 if config.norm == "layer" else 1
    return FLOAT32 * (2 * (config.emb_dim + statistics) + config.n_heads) + PRODUCT_BYTES[precision] * products


def _numbers_of_a_block(config: GPTConfig) -> int:
    return config.n_parameters - config.model_copy(update={"n_layers": config.n_layers - 1}).n_parameters
