"""What fits a GPU: `python -m benchmarks.memory` prints the tables of docs/gpu.md.

They are computed by the formula of training/memory.py; nothing is measured.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence

from scratchlm.model.config import GPTConfig, SizeName, published_config
from scratchlm.training.memory import Step, training_memory

STEPS: list[tuple[SizeName, int]] = [("124M", 16), ("355M", 8), ("774M", 4), ("1558M", 1)]  # and rows of 1,024 tokens
CARDS = (8, 16, 24, 80)  # GiB
USABLE = 0.92  # of a card's memory; the rest is for the driver, CUDA and gaps between tensors
CONTEXTS = (256, 1024)
MOST_ROWS = 10_000


def memory_of_steps() -> Iterator[list[str]]:
    """Of each size, the memory of a step that is one micro batch."""
    yield ["model", "rows × tokens", "GiB", "GiB with `checkpoint_activations`"]
    for size, n_rows in STEPS:
        found = (
            training_memory(published_config(size), Step(n_rows, 1024, checkpoint=on)).peak for on in (False, True)
        )
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
        return training_memory(config, Step(n_rows, n_tokens, checkpoint=checkpoint, accumulates=True)).peak

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
