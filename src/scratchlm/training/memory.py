"""The memory that a training certainly needs, from the model's shape and the micro batch alone.

Counts float32 weights, gradients and AdamW's two moments, and what each block keeps for its gradients. It is for
GPT-2's parts, torch's fused attention and rows of one length; other parts keep more. benchmarks/memory.py adds the rest
of what exists at the peak of a step.
"""

from scratchlm.model.cache import CACHE_GROWTH
from scratchlm.model.config import GPTConfig

FLOAT32, FLOAT64 = 4, 8
PRODUCT_BYTES = {"float32": 4, "bfloat16": 2}  # of a number that a matrix product takes or gives


def least_bytes(config: GPTConfig, n_tokens: int, checkpoint: bool) -> int:
    """The bytes that exist at once where the whole model is trained, at least, in any precision and on any device.

    n_tokens: of a micro batch. checkpoint: activations are computed again in the backward pass.
    """
    weights = FLOAT32 * config.n_parameters
    return 3 * weights + max(weights, activation_bytes(config, n_tokens, "bfloat16", checkpoint))


def rollout_bytes(config: GPTConfig, n_responses: int, max_new_tokens: int, device: str) -> int:
    """The least bytes that exist at once while a token of each response is sampled, without the weights.

    These are the keys and values of all responses, which may be short, in any precision, and the logits: on a card in
    float32; on a CPU, where tokens are drawn, also divided by the temperature, and in float64 these and the
    probabilities. The log-probabilities of policy and assistant take less: the logits of one micro batch at a time.
    """
    n_slots = 1 if max_new_tokens == 1 else min(CACHE_GROWTH, config.context_length)
    of_product = PRODUCT_BYTES["bfloat16"]
    cache = n_slots * config.kv_cache_bytes_per_token * of_product // FLOAT32
    logit = FLOAT32 if device == "cuda" else of_product + FLOAT32 + 2 * FLOAT64
    return n_responses * (cache + config.vocab_size * logit)


def activation_bytes(config: GPTConfig, n_tokens: int, precision: str, checkpoint: bool) -> int:
    """The bytes that the backward pass needs of the forward pass: of each block, and the input of the final norm."""
    residual = FLOAT32 * n_tokens * config.emb_dim
    return config.n_layers * (residual if checkpoint else n_tokens * block_bytes(config, precision)) + residual


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
