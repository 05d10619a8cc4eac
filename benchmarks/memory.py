"""What fits a GPU: `python -m benchmarks.memory` prints the tables of docs/gpu.md.

They are computed by a formula; nothing is measured. It counts what training/loop.py holds at once, without a compiler:
what training/memory.py counts, under autocast a bfloat16 copy of each matrix, and a block of logits. It is within 3 %
of the storages that exist in a step on the CPU (tests/unit/benchmarks/test_memory_formula.py), and within 1 % of what
torch allocated for one on an H100 (docs/gpu.md).
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from scratchlm.model.config import GPTConfig, SizeName, published_config
from scratchlm.training.losses import LOGITS_AT_ONCE
from scratchlm.training.memory import FLOAT32, PRODUCT_BYTES, activation_bytes, block_bytes

STEPS: list[tuple[SizeName, int]] = [("124M", 16), ("355M", 8), ("774M", 4), ("1558M", 1)]  # and rows of 1,024 tokens
CARDS = (8, 16, 24, 80)  # GiB
USABLE = 0.92  # of a card's memory; the rest is for the driver, CUDA and gaps between tensors
CONTEXTS = (256, 1024)
MOST_ROWS = 10_000
WORKSPACE_BYTES = 2 * 8 * 4096 * 1024  # of cuBLAS, by CUBLAS_WORKSPACE_CONFIG=:4096:8 in two threads


class Step(NamedTuple):
    """A micro batch: n_rows of n_tokens each. accumulates: whether others of its optimizer step came before it."""

    n_rows: int
    n_tokens: int
    precision: str = "bfloat16"
    checkpoint: bool = False
    accumulates: bool = False


def peak_bytes(config: GPTConfig, step: Step) -> int:
    """The most bytes that exist at once in a micro batch where the whole model is trained.

    That is while the last block of logits gives its gradients, in the backward pass of the last or of the first block,
    or when the embedding's gradient is there.
    """
    n, C, L, V = step.n_rows * step.n_tokens, config.emb_dim, config.n_layers, config.vocab_size
    product = PRODUCT_BYTES[step.precision]
    weights, head, block_weights = FLOAT32 * config.n_parameters, FLOAT32 * V * C, FLOAT32 * _numbers_of_a_block(config)
    copied = product / FLOAT32 if product < FLOAT32 else 0.0  # size of autocast's copy of a matrix
    copies = copied * block_weights
    fixed = (4 if step.accumulates else 3) * weights
    residual, block = FLOAT32 * n * C, n * block_bytes(config, step.precision)
    activations = activation_bytes(config, n, step.precision, step.checkpoint)

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
    at_last_block = fixed + head + activations - residual + inner + (block + copies if step.checkpoint else L * copies)
    others = 0 if step.accumulates else (L - 1) * block_weights
    at_first_block = fixed + head + others + block + inner + copies
    added = head * (2 * config.tied_head + step.accumulates)  # a tied weight's two gradients beside their sum
    at_embedding = 4 * weights + added + residual
    return int(max(at_logits, at_last_block, at_first_block, at_embedding)) + WORKSPACE_BYTES


def _numbers_of_a_block(config: GPTConfig) -> int:
    return config.n_parameters - config.model_copy(update={"n_layers": config.n_layers - 1}).n_parameters


def memory_of_steps() -> Iterator[list[str]]:
    """Of each size, the memory of a step that is one micro batch."""
    yield ["model", "rows × tokens", "GiB", "GiB with `checkpoint_activations`"]
    for size, n_rows in STEPS:
        found = (peak_bytes(published_config(size), Step(n_rows, 1024, checkpoint=on)) for on in (False, True))
        yield [size, f"{n_rows} × 1,024", *(f"{n_bytes / 2**30:.1f}" for n_bytes in found)]


def rows_that_fit() -> Iterator[list[str]]:
    """Of each size and context, the largest micro batch of a step that has several."""
    yield ["model", "tokens per row", "`checkpoint_activations`", *(f"{gib} GB" for gib in CARDS)]
    for size, _ in STEPS:
        for n_tokens in CONTEXTS:
            for on in (False, True):
                most = [largest_micro_batch(published_config(size), n_tokens, on, gib * 2**30) for gib in CARDS]
                yield [size, f"{n_tokens:,}", str(on).lower(), *(f"{rows:,}" if rows else "–" for rows in most)]


def largest_micro_batch(config: GPTConfig, n_tokens: int, checkpoint: bool, card_bytes: int) -> int:
    """Rows of bfloat16 training that fit a card, weights and moments in float32; 0 if one does not."""

    def peak(n_rows: int) -> int:
        return peak_bytes(config, Step(n_rows, n_tokens, checkpoint=checkpoint, accumulates=True))

    return bisect_right(range(1, MOST_ROWS), USABLE * card_bytes, key=peak)


def markdown(lines: Iterator[Sequence[str]]) -> str:
    """A table whose first line is its header; all but the first column are to the right."""
    header, *rows = lines
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def main() -> None:
    print(markdown(memory_of_steps()), markdown(rows_that_fit()), sep="\n\n")


if __name__ == "__main__":
    main()
