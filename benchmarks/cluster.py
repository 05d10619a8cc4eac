"""A training step by several workers: `python -m benchmarks.cluster --workers 2 --repeats 3`.

Each round trains the same model with one process and all cores, and with several workers that share the cores, in
turns. Prints tokens per second, how much of its time a worker waits for messages, and the step that a model of
computation and communication predicts (see `predicted_seconds`), then what the same model says of clusters of cards,
from a card's rate and a network's bandwidth that you give. Writes benchmarks/results/cluster.json.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from tabulate import tabulate
from tqdm import tqdm

from benchmarks.baselines import SEED
from benchmarks.harness import REPOSITORY, RESULTS, about, summary
from benchmarks.setting import training_params
from scratchlm.data.windows import TokenWindows
from scratchlm.model.config import GPT2_CONTEXT_LENGTH, GPT2_VOCAB_SIZE, SIZES, gpt2_config
from scratchlm.model.gpt import build_model, parameter_count
from scratchlm.run.context import Run
from scratchlm.run.device import RuntimeParams, available_cores
from scratchlm.run.files import write_json
from scratchlm.run.workers import COUNT_VARIABLE, LOOPBACK, Place
from scratchlm.tasks.pretraining import pretraining_task
from scratchlm.training import exchange
from scratchlm.training.loop import train

BATCH_SIZE, WINDOW = 8, 256
STEPS = 3  # that are timed, after as many that warm up
MESSAGE_BYTES = 1 << 28  # of the bandwidth's measurement


class Step(NamedTuple):
    """exchange_share: of the time that the stage's own process waited for messages."""

    tokens_per_second: float
    exchange_share: float


def stage() -> None:
    """What each worker runs: a training whose settings, in JSON, are this command's last argument."""
    from scratchlm.fast.kernels import set_up

    given = json.loads(sys.argv[-1])
    run = Run(seed=SEED, log=Path(given["log"]))
    set_up(run, RuntimeParams(device="cpu", threads=given["threads"], precision="float32", compile=False, seed=SEED))
    model = build_model(gpt2_config(given["size"], GPT2_VOCAB_SIZE, GPT2_CONTEXT_LENGTH), SEED)
    tokens = np.random.default_rng(SEED).integers(GPT2_VOCAB_SIZE, size=2 * STEPS * BATCH_SIZE * WINDOW + 1)
    params = training_params(BATCH_SIZE, given["micro_batch_size"], STEPS)
    train(model, pretraining_task(TokenWindows(tokens, WINDOW, WINDOW), params, lambda model: {"loss": 0.0}), run)


def train_with(n_workers: int, threads: int, size: str, micro_batch_size: int) -> Step:
    """Train in processes of their own."""
    with tempfile.TemporaryDirectory(prefix="scratchlm-benchmark-") as folder:
        log = Path(folder, "log.jsonl")
        given = {"log": str(log), "threads": threads, "size": size, "micro_batch_size": micro_batch_size}
        command = [sys.executable, "-m", "benchmarks.cluster", json.dumps(given)]
        subprocess.run(command, cwd=REPOSITORY, env=os.environ | {COUNT_VARIABLE: f"{n_workers}"}, check=True)
        before, after = (json.loads(line) for line in log.read_text().splitlines())
    waited = after.get("exchange_seconds", 0.0) - before.get("exchange_seconds", 0.0)
    return Step(after["scored_per_second"], waited / after["training_seconds"])


def bandwidth() -> float:
    """Bytes per second from one process to another on this machine."""
    context = get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="scratchlm-benchmark-") as folder:
        here, there = context.Pipe()
        processes = [context.Process(target=_send, args=(rank, folder, there)) for rank in (0, 1)]
        for process in processes:
            process.start()
        found = here.recv()
        for process in processes:
            process.join()
    return MESSAGE_BYTES / found


def _send(rank: int, folder: str, result: Connection) -> None:
    place = Place(rank, 2, 1, folder, f"{folder}/store", LOOPBACK)
    exchange.connect(place)
    message = torch.zeros(MESSAGE_BYTES // 4)
    for _ in range(2):  # the first opens the connection
        dist.barrier()
        start = perf_counter()
        (dist.recv if place.rank else dist.send)(message, 1 - place.rank)
    if place.rank:
        result.send(perf_counter() - start)
    exchange.disconnect()


def received_bytes(n_workers: int, n_micro: int, n_weights: int) -> float:
    """What one worker receives per step: gradients of its own weights, float32, and the others' weights.

    Rank 0 sends the sum of its micro batches, each other worker the gradient of each.
    """
    messages = n_micro - math.ceil(n_micro / n_workers) + 1
    return 4 * n_weights * (messages + n_workers - 2) / n_workers


def predicted_seconds(n_workers: int, n_micro: int, n_weights: int, micro_seconds: float, bandwidth: float) -> float:
    """A step's time: a worker computes its micro batches, and what it receives takes its time afterwards."""
    own = math.ceil(n_micro / n_workers) * micro_seconds
    return own + (received_bytes(n_workers, n_micro, n_weights) / bandwidth if n_workers > 1 else 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, action="append", help="how many (repeatable); 2 and 4 are the default")
    parser.add_argument("--size", choices=sorted(SIZES), default="124M")
    parser.add_argument("--micro-batch-size", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--card-rate", type=float, default=492_100, help="tokens per second of one card (docs/gpu.md)")
    parser.add_argument("--card-batch", type=int, default=1 << 19, help="tokens of a step on a cluster of cards")
    parser.add_argument("--card-micro-batch", type=int, default=1 << 14, help="tokens of a card's micro batch")
    parser.add_argument("--network", type=float, default=50.0, help="GB per second that a card receives")
    options = parser.parse_args()
    cores, numbers = available_cores(), [1, *(options.workers or [2, 4])]
    rounds: dict[int, list[Step]] = {n: [] for n in numbers}
    for _ in tqdm(range(options.repeats), "rounds"):
        for n in numbers:
            rounds[n].append(train_with(n, max(1, cores // n), options.size, options.micro_batch_size))
    alone = train_with(1, 1, options.size, options.micro_batch_size).tokens_per_second
    here = bandwidth()
    n_weights = parameter_count(build_model(gpt2_config(options.size, GPT2_VOCAB_SIZE, GPT2_CONTEXT_LENGTH), SEED))
    n_micro, tokens = math.ceil(BATCH_SIZE / options.micro_batch_size), BATCH_SIZE * WINDOW
    rows = []
    for n in numbers:
        measured = summary([step.tokens_per_second for step in rounds[n]])
        pairs = zip(rounds[n], rounds[1], strict=True)
        ratio = summary([step.tokens_per_second / one.tokens_per_second for step, one in pairs])
        share = summary([step.exchange_share for step in rounds[n]])
        # More workers than cores take turns
        seconds = predicted_seconds(n, n_micro, n_weights, tokens / alone / n_micro * max(1, n / cores), here)
        predicted = tokens / seconds if n > 1 else None
        rows.append({"workers": n, "tokens/s": measured, "of one process": ratio, "waiting": share, "model": predicted})
    shown = [{k: v["median"] if isinstance(v, dict) else v for k, v in row.items()} for row in rows]
    print(f"\n{tabulate(shown, headers='keys', floatfmt='.3g')}\n\n{here / 1e9:.2f} GB/s between two processes\n")
    cards = [card_row(n, n_weights, options) for n in (8, 16, 32, 64)]
    print(tabulate(cards, headers="keys", floatfmt=".3g"))
    setting = {"size": options.size, "batch_size": BATCH_SIZE, "window": WINDOW, "micro_batches": n_micro}
    found = {"setting": setting, "rows": rows, "bytes_per_second": here, "one_thread_tokens_per_second": alone}
    write_json(RESULTS / "cluster.json", about("benchmarks.cluster", cores) | found)


def card_row(n_cards: int, n_weights: int, options: argparse.Namespace) -> dict[str, Any]:
    """What the model says of a number of cards."""
    n_micro = options.card_batch // options.card_micro_batch
    micro_seconds = options.card_micro_batch / options.card_rate
    seconds = predicted_seconds(n_cards, n_micro, n_weights, micro_seconds, options.network * 1e9)
    rate = options.card_batch / seconds
    return {"cards": n_cards, "tokens/s (model)": rate, "of as many cards alone": rate / n_cards / options.card_rate}


if __name__ == "__main__":
    stage() if sys.argv[-1].startswith("{") else main()
