"""`scratchlm serve` as a process of its own, under load."""

import itertools
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import pytest

from benchmarks import serve
from scratchlm.data.prompts import encode_prompt
from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.fast.decoding import for_inference
from scratchlm.formats.native import load_gpt
from scratchlm.model.generate import Stopping, generate
from scratchlm.run.files import read_json

CLIENTS, REQUESTS = 32, 1000
N_NEW = 12


class Served(NamedTuple):
    process: psutil.Process
    address: str


@pytest.fixture(scope="module")
def served(built: Path) -> Iterator[Served]:
    command = [sys.executable, "-m", "scratchlm.cli.main", "serve", "--address", "127.0.0.1:0"]
    with subprocess.Popen(command, cwd=built, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        found = re.fullmatch(r"serving finetune_instruct and finetune_spam at (\S+)\n", process.stdout.readline())
        assert found
        yield Served(psutil.Process(process.pid), found[1])
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0


def test_of_a_thousand_requests_half_are_cut_off_and_the_others_answered_as_alone(built: Path, served: Served) -> None:
    tokenizer = load_tokenizer(built / "data" / "tokens" / "finetuning_tokenizer")
    model = for_inference(load_gpt(built / "data" / "models" / "finetune_instruct"))
    words = ("mouse", "bag", "river", "horse", "lamp", "bear", "Leo", "three")
    asked = [f"Name {one} and {other}." for one, other in itertools.permutations(words, 2)]
    prompts = [encode_prompt({"instruction": text, "input": ""}, "alpaca", tokenizer) for text in asked]
    stopping = Stopping(N_NEW, tokenizer.end_token_id)
    expected = [tokenizer.decode(generate(model, [prompt], stopping)[0].token_ids) for prompt in prompts]
    url = f"{served.address}/v1/chat/completions"

    def ask(client: httpx.Client, index: int) -> bool:
        """Whether the answer was right; every second client goes away, before it or after the first piece of it."""
        messages = [{"role": "user", "content": asked[index % len(asked)]}]
        body = {"model": "finetune_instruct", "messages": messages, "max_tokens": N_NEW}
        if index % 4 == 1:
            with client.stream("POST", url, json=body | {"stream": True}) as response:
                next(response.iter_raw())
            return response.status_code == 200
        if index % 4 == 3:
            with suppress(httpx.ReadTimeout):
                client.post(url, json=body, timeout=httpx.Timeout(60, read=0.001))
            return True
        answer = client.post(url, json=body)
        return answer.json()["choices"][0]["message"]["content"] == expected[index % len(asked)]

    def ask_all(indices: Any) -> list[bool]:
        limits = httpx.Limits(max_connections=CLIENTS)
        with httpx.Client(timeout=60, limits=limits) as client, ThreadPoolExecutor(CLIENTS) as pool:
            return list(pool.map(lambda index: ask(client, index), indices))

    assert all(ask_all(range(REQUESTS)))  # the allocator's pools grow in the first ones
    before = served.process.memory_info().rss, served.process.num_fds(), served.process.num_threads()
    assert all(ask_all(range(REQUESTS)))
    metrics = httpx.get(f"{served.address}/metrics").text
    assert "scratchlm_active_requests 0.0" in metrics and "scratchlm_waiting_requests 0.0" in metrics
    after = served.process.memory_info().rss, served.process.num_fds(), served.process.num_threads()
    assert after[0] - before[0] < 8 << 20 and after[1] <= before[1] and after[2] == before[2]


def test_the_benchmark_measures_both_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["serve.py", "--size", "gpt2-nano", "--clients", "2", "--repeats", "1"])
    serve.main()
    found = read_json(tmp_path / "serve.json")
    names = [f"{server}, {n} at once" for server in ("scratchlm", "llama.cpp") for n in (1, 2)]
    assert [row["server"] for row in found["rows"]] == names
    assert all(0 < row["first text, s"] <= row["whole answer, s"] <= row["slowest, s"] for row in found["rows"])
    rates = [row["tokens/s"] for row in found["rows"]]
    assert found["ratios"]["against llama.cpp, at once"] == pytest.approx([rates[1] / rates[3]] * 3, rel=1e-4)
