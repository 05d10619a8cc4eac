"""Serving, side by side with llama.cpp's server: `python -m benchmarks.serve --clients 16 --repeats 5`.

Both servers are processes of their own and have the same weights, GPT-2's smallest size at random, in float32. In each
round, each server answers one request after another, then as many at once as there are clients. Prints a table; writes
benchmarks/results/serve.json.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from tabulate import tabulate
from tqdm import tqdm

from benchmarks.baselines import SEED
from benchmarks.harness import RESULTS, about
from benchmarks.sources import tokenizer_of
from scratchlm.data.byte_pairs import save_byte_pairs
from scratchlm.formats.gguf import save_gguf
from scratchlm.formats.native import save_gpt
from scratchlm.model.config import GPTConfig
from scratchlm.model.gpt import build_model
from scratchlm.run.device import available_cores
from scratchlm.run.files import write_json

PROMPT_TOKENS, NEW_TOKENS = 64, 64
SIZES = {  # by the source of the vocabulary
    "gpt2-124M": {"n_layers": 12, "n_heads": 12, "emb_dim": 768, "context_length": 1024},
    "gpt2-nano": {"n_layers": 2, "n_heads": 2, "emb_dim": 32, "context_length": 256},
}
LLAMA_CPP = """
import sys, time
import xllamacpp
settings = xllamacpp.CommonParams()
settings.model.path, settings.n_parallel, settings.n_ctx = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = int(sys.argv[4])
settings.n_gpu_layers, settings.fit_params, settings.ui, settings.verbosity, settings.port = 0, False, False, 0, 0
server = xllamacpp.Server(settings)
print("serving at", server.listening_address, flush=True)
time.sleep(10**6)
"""


class Answers(NamedTuple):
    """tokens_per_second: of all clients. first, whole: seconds to the first text and to the end, of each request."""

    tokens_per_second: float
    first: list[float]
    whole: list[float]


@contextmanager
def server(command: list[str]) -> Iterator[str]:
    """The address of a server that prints it."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        found = next(filter(None, (re.search(r"at (http\S+)", line) for line in process.stdout)))
        try:
            yield found[1]
        finally:
            process.kill()


def ask(server_name: str, address: str, prompt: list[int]) -> tuple[float, float, int]:
    """Seconds to the first text and to the end, and the number of new tokens."""
    body: dict[str, Any] = {
        "model": "model",
        "prompt": prompt,
        "max_tokens": NEW_TOKENS,
        "temperature": 0,
        "stream": True,
    }
    body |= {"stream_options": {"include_usage": True}}
    if server_name == "llama.cpp":  # which else would answer a repeated prompt from its cache
        body["cache_prompt"] = False
    start, first, n_new = time.perf_counter(), 0.0, 0
    with httpx.stream("POST", f"{address}/v1/completions", json=body, timeout=600) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            first = first or (time.perf_counter() - start if line else 0.0)
            if line.startswith("data: {") and (usage := json.loads(line[6:]).get("usage")):
                n_new = usage["completion_tokens"]
    return first, time.perf_counter() - start, n_new


def measure(server_name: str, address: str, prompts: list[list[int]], n_clients: int) -> Answers:
    with ThreadPoolExecutor(n_clients) as pool:
        start = time.perf_counter()
        found = list(pool.map(lambda prompt: ask(server_name, address, prompt), prompts))
        seconds = time.perf_counter() - start
    first, whole, n_new = zip(*found, strict=True)
    return Answers(sum(n_new) / seconds, list(first), list(whole))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", choices=SIZES, default="gpt2-124M")
    arguments = parser.parse_args()
    found: dict[str, list[Answers]] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        addresses = start_servers(Path(name), arguments.size, arguments.clients, stack)
        prompts = [[(7 * row + 13 * i) % 900 + 100 for i in range(PROMPT_TOKENS)] for row in range(arguments.clients)]
        for round_ in tqdm(range(-1, arguments.repeats), "rounds", disable=None):  # the first only warms up
            for server_name, address in addresses.items():
                for n_clients in (1, arguments.clients):
                    answers = measure(server_name, address, prompts, n_clients)
                    if round_ >= 0:
                        found.setdefault(f"{server_name}, {n_clients} at once", []).append(answers)
    rows = [row_of(name, rounds) for name, rounds in found.items()]
    print(tabulate(rows, headers="keys", floatfmt=".3g"))
    names = list(found)
    ratios = {
        "at once against one by one": ratio(found[names[1]], found[names[0]]),
        "against llama.cpp, one by one": ratio(found[names[0]], found[names[2]]),
        "against llama.cpp, at once": ratio(found[names[1]], found[names[3]]),
    }
    for name, (median, least, most) in ratios.items():
        print(f"{name}: {median:.2f} ({least:.2f} to {most:.2f})")
    setting = {"size": arguments.size, "prompt_tokens": PROMPT_TOKENS, "new_tokens": NEW_TOKENS}
    origin = about("benchmarks.serve", available_cores())
    write_json(RESULTS / "serve.json", {"setting": setting, "rows": rows, "ratios": ratios} | origin)


def start_servers(folder: Path, size: str, n_clients: int, stack: ExitStack) -> dict[str, str]:
    """Write the model for both servers, and start them: their addresses by name."""
    tokenizer = tokenizer_of(size)
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, dropout=0.0, qkv_bias=True, tied_head=True, initialisation="gpt2",
        attention="sdpa", **SIZES[size],  # type: ignore[arg-type]
    )  # fmt: skip
    model = build_model(config, SEED)
    save_gpt(folder / "model", model)
    save_byte_pairs(folder / "tokenizer", *tokenizer.pairs)
    save_gguf(folder / "model.gguf", model, tokenizer, None, storage="float32", general={})
    ours = ["-m", "scratchlm.cli.main", "serve", "--model", f"{folder}/model", "--tokenizer", f"{folder}/tokenizer"]
    ours += ["--prompt-style", "alpaca", "--address", "127.0.0.1:0", "--batch-size", f"{n_clients}"]
    n_slots = n_clients * (PROMPT_TOKENS + NEW_TOKENS + 64)
    theirs = ["-c", LLAMA_CPP, f"{folder}/model.gguf", f"{n_clients}", f"{n_slots}", f"{available_cores()}"]
    commands = {"scratchlm": ours, "llama.cpp": theirs}
    return {name: stack.enter_context(server([sys.executable, *command])) for name, command in commands.items()}


def row_of(name: str, rounds: list[Answers]) -> dict[str, Any]:
    def median(values: list[float]) -> float:
        return statistics.median(values)

    return {
        "server": name,
        "tokens/s": median([answers.tokens_per_second for answers in rounds]),
        "first text, s": median([second for answers in rounds for second in answers.first]),
        "whole answer, s": median([second for answers in rounds for second in answers.whole]),
        "slowest, s": max(second for answers in rounds for second in answers.whole),
    }


def ratio(ours: list[Answers], theirs: list[Answers]) -> tuple[float, float, float]:
    """The median, least and largest ratio of tokens per second in a round."""
    ratios = [mine.tokens_per_second / its.tokens_per_second for mine, its in zip(ours, theirs, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


if __name__ == "__main__":
    main()
