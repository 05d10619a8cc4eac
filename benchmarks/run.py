"""Side-by-side measurements: ours, the book's package and transformers on the same weights shape, alternating.

Run as `make bench`, or `python -m benchmarks.run --row train_step --size 124M --repeats 3` for one row.
Prints a table of medians with their spread and the ratio to the fastest peer; writes benchmarks/results/<row>.json.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from llms_from_scratch.ch04 import GPTModel as BookGPT
from llms_from_scratch.ch05 import generate as book_generate
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel

from scratchlm.artifacts import write_json
from scratchlm.model.config import SIZES, gpt2_config
from scratchlm.model.decoding import generate
from scratchlm.model.gpt import GPTModel
from scratchlm.training.losses import summed_next_token_loss

RESULTS = Path(__file__).parent / "results"
VOCAB_SIZE, CONTEXT_LENGTH = 50257, 1024
TRAIN_SHAPE = (2, 256)
DECODE_PROMPT, DECODE_NEW = 64, 64

Contender = Callable[[], None]


def ours(size: str) -> GPTModel:
    return GPTModel(gpt2_config(size, VOCAB_SIZE, CONTEXT_LENGTH))  # type: ignore[arg-type]


def book(size: str) -> BookGPT:
    n_layers, n_heads, emb_dim = SIZES[size]
    return BookGPT(
        {
            "vocab_size": VOCAB_SIZE, "context_length": CONTEXT_LENGTH, "emb_dim": emb_dim, "n_heads": n_heads,
            "n_layers": n_layers, "drop_rate": 0.0, "qkv_bias": True,
        }
    )  # fmt: skip


def huggingface(size: str) -> GPT2LMHeadModel:
    n_layers, n_heads, emb_dim = SIZES[size]
    dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = GPT2Config(
        vocab_size=VOCAB_SIZE, n_positions=CONTEXT_LENGTH, n_embd=emb_dim, n_layer=n_layers, n_head=n_heads, **dropouts
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def train_step(size: str) -> tuple[dict[str, Contender], int]:
    """One optimizer step on a batch, in float32: each as its users train it. Returns also the tokens per call."""
    inputs = torch.randint(VOCAB_SIZE, TRAIN_SHAPE)
    targets = torch.randint(VOCAB_SIZE, TRAIN_SHAPE)

    def stepper(model: torch.nn.Module, loss: Callable[[], torch.Tensor], *, fused: bool) -> Contender:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=fused)
        model.train()

        def step() -> None:
            loss().backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    our, their, hub = ours(size), book(size), huggingface(size)
    cross_entropy = torch.nn.functional.cross_entropy
    return {
        "scratchlm": stepper(our, lambda: summed_next_token_loss(our, inputs, targets) / targets.numel(), fused=True),
        "llms-from-scratch": stepper(
            their, lambda: cross_entropy(their(inputs).flatten(0, 1), targets.flatten()), fused=False
        ),
        "transformers": stepper(hub, lambda: hub(inputs, labels=inputs).loss, fused=False),
    }, inputs.numel()


def decode(size: str) -> tuple[dict[str, Contender], int]:
    """Greedy continuation of one prompt in float32. Returns also the new tokens per call."""
    prompt = torch.randint(VOCAB_SIZE, (1, DECODE_PROMPT))
    our, their, hub = (model.eval() for model in (ours(size), book(size), huggingface(size)))

    def theirs() -> None:
        book_generate(their, prompt, DECODE_NEW, CONTEXT_LENGTH)

    def hubs() -> None:
        hub.generate(
            prompt, attention_mask=torch.ones_like(prompt), min_new_tokens=DECODE_NEW, max_new_tokens=DECODE_NEW,
            do_sample=False, pad_token_id=0,
        )  # fmt: skip

    def our_own() -> None:
        generate(our, prompt.tolist(), max_new_tokens=DECODE_NEW, end_token_id=None)

    return {"scratchlm": our_own, "llms-from-scratch": theirs, "transformers": hubs}, DECODE_NEW


ROWS = {"train_step": train_step, "decode": decode}


def measure(contenders: dict[str, Contender], n_tokens: int, repeats: int, name: str) -> dict[str, dict[str, float]]:
    """Tokens per second of each: median and range over `repeats` alternating calls, after one that is not counted."""
    rates: dict[str, list[float]] = {contender: [] for contender in contenders}
    for repeat in tqdm(range(repeats + 1), desc=name, unit="round"):
        for contender, call in contenders.items():
            start = time.perf_counter()
            call()
            if repeat:
                rates[contender].append(n_tokens / (time.perf_counter() - start))
    return {
        contender: {"median": statistics.median(found), "lowest": min(found), "highest": max(found)}
        for contender, found in rates.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", choices=sorted(ROWS), action="append", help="measure only this (repeatable)")
    parser.add_argument("--size", choices=sorted(SIZES), default="124M")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    for row in options.row or ROWS:
        contenders, n_tokens = ROWS[row](options.size)
        rates = measure(contenders, n_tokens, options.repeats, row)
        print(f"\n{row}, {options.size}, float32, {options.threads} threads: tokens per second")
        for contender, rate in rates.items():
            ratio = rates["scratchlm"]["median"] / rate["median"]
            spread = f"{rate['lowest']:.1f} to {rate['highest']:.1f}"
            print(f"  {contender:18} {rate['median']:10.1f}   ({spread})   scratchlm is {ratio:.2f} times as fast")
        machine = {"processor": platform.machine(), "threads": options.threads, "torch": torch.__version__}
        machine["capability"] = torch.backends.cpu.get_cpu_capability()
        write_json(RESULTS / f"{row}-{options.size}.json", {"tokens_per_second": rates, "machine": machine})


if __name__ == "__main__":
    main()
