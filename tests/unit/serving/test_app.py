"""The server on a port of this machine, asked by OpenAI's own client and by hand."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from scratchlm.data.byte_pairs import BytePairTokenizer
from scratchlm.data.prompts import encode_conversation, encode_prompt
from scratchlm.fast.decoding import for_inference
from scratchlm.model.generate import GREEDY, SamplingParams, Stopping, generate
from scratchlm.model.gpt import GPTModel
from scratchlm.serving import guard
from scratchlm.serving.app import make_app
from scratchlm.serving.engine import Limits
from scratchlm.serving.service import LanguageModel, Service, TextClassifier

CONTEXT = 96
USUAL = Limits(batch_size=8, waiting=32, seconds=60.0)
CLASSIFIER = TextClassifier(
    "sorter", ["no", "yes"], lambda texts: ([[0.25, 0.75]] * len(texts), [len(text) > 9 for text in texts])
)


@pytest.fixture(scope="module")
def model(tiny_gpt: Callable[..., GPTModel], gpt2: BytePairTokenizer) -> GPTModel:
    return tiny_gpt(vocab_size=gpt2.vocab_size, context_length=CONTEXT)


@pytest.fixture(scope="module")
def serving(model: GPTModel, gpt2: BytePairTokenizer) -> Callable[..., Any]:
    """A function for a `with` block that serves the model and gives the address."""

    @contextmanager
    def serve(limits: Limits = USUAL, key: str | None = None) -> Iterator[str]:
        listener = socket.create_server(("127.0.0.1", 0))
        service = Service(LanguageModel("tiny", for_inference(model), gpt2, "alpaca"), limits)
        app = make_app(service, CLASSIFIER, key, is_local=True)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(timeout=30)
        assert not thread.is_alive()

    return serve


@pytest.fixture(scope="module")
def address(serving: Callable[..., Any]) -> Iterator[str]:
    with serving() as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


def alone(
    model: GPTModel, gpt2: BytePairTokenizer, prompt: list[int], n_new: int, sampling: SamplingParams = GREEDY
) -> str:
    (found,) = generate(for_inference(model), [prompt], Stopping(n_new, gpt2.end_token_id), sampling, seeds=[5])
    return gpt2.decode(found.token_ids)


def metric(address: str, name: str) -> float:
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(name))


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does, at most 30 seconds."""
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def test_a_chat_and_its_stream_are_what_generate_says(
    client: openai.OpenAI, model: GPTModel, gpt2: BytePairTokenizer
) -> None:
    turns = [("user", "Hi"), ("assistant", "Ho"), ("user", "Why?")]
    messages: Any = [{"role": role, "content": text} for role, text in turns]
    prompt = encode_conversation(turns, "alpaca", gpt2)
    for sampling in (GREEDY, SamplingParams(temperature=0.8, top_k=0, top_p=0.9, repetition_penalty=1.0)):
        asked: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": 5}
        expected = alone(model, gpt2, prompt, 12, sampling)
        whole = client.chat.completions.create(model="tiny", messages=messages, max_tokens=12, **asked)
        assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (expected, "length")
        assert whole.usage and (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (len(prompt), 12)
        stream = client.chat.completions.create(
            model="tiny", messages=messages, max_completion_tokens=12, stream=True,
            stream_options={"include_usage": True}, **asked,
        )  # fmt: skip
        *pieces, last = list(stream)
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected
        assert [piece.choices[0].delta.role for piece in pieces] == ["assistant", *[None] * (len(pieces) - 1)]
        assert pieces[-1].choices[0].finish_reason == "length" and last.usage == whole.usage


def test_a_completion_stops_at_a_string_or_at_the_end_of_the_context(
    client: openai.OpenAI, model: GPTModel, gpt2: BytePairTokenizer
) -> None:
    expected = alone(model, gpt2, gpt2.encode("Once"), 16)
    found = client.completions.create(model="tiny", prompt="Once")
    assert (found.choices[0].text, found.choices[0].finish_reason) == (expected, "length")
    stop = expected[9:12]
    for stream in (False, True):
        answer: Any = client.completions.create(model="tiny", prompt=gpt2.encode("Once"), stop=stop, stream=stream)
        pieces = list(answer) if stream else [answer]
        assert "".join(piece.choices[0].text for piece in pieces) == expected[: expected.index(stop)]
        assert pieces[-1].choices[0].finish_reason == "stop"
    chat = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "Hi"}])
    n_prompt = len(encode_prompt({"instruction": "Hi", "input": ""}, "alpaca", gpt2))
    assert (
        chat.choices[0].finish_reason == "length" and chat.usage and chat.usage.completion_tokens == CONTEXT - n_prompt
    )


SYSTEM = {"role": "system", "content": "Be brief."}
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("chat/completions", CHAT | {"model": "gpt-4"}, 404, "the model 'gpt-4' is not served here; ask for 'tiny'"),
        ("chat/completions", CHAT | {"n": 2}, 400, "n is not supported by this server; leave it out"),
        ("chat/completions", CHAT | {"tools": [{}]}, 400, "tools is not supported"),
        ("chat/completions", CHAT | {"min_p": 0.1}, 400, "min_p is not supported"),
        ("completions", {"model": "tiny", "prompt": "a", "logprobs": 0}, 400, "logprobs is not supported"),
        ("chat/completions", CHAT | {"messages": [SYSTEM, *CHAT["messages"]]}, 400, "alpaca has no system message"),
        ("chat/completions", CHAT | {"temperature": -1}, 400, "temperature: "),
        ("chat/completions", CHAT | {"stop": [""]}, 400, "stop must have at most 4 strings of 1 to 200 characters"),
        ("chat/completions", CHAT | {"messages": []}, 400, "messages: "),
        ("chat/completions", CHAT | {"messages": [{"role": "assistant", "content": ""}]}, 400, "must be the user's"),
        ("chat/completions", CHAT | {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, 400, "content"),
        ("chat/completions", CHAT | {"max_tokens": 90}, 400, "context has 96; shorten the prompt or ask for less"),
        ("completions", {"model": "tiny", "prompt": ""}, 400, "the prompt has no tokens"),
        ("completions", {"model": "tiny", "prompt": [7, 10**6]}, 400, "token id 1000000 is not one of the"),
        ("completions", {"prompt": "a"}, 400, "model: "),
        ("completions", [], 400, "send a JSON object, with Content-Type: application/json"),
        ("completions", {"model": "tiny", "prompt": "a", "max_tokens": True}, 400, "max_tokens: "),
        ("completions", {"model": "tiny", "prompt": [7] * 96}, 400, "has 96 tokens, but the model's context has 96"),
        ("classify", {"model": "tiny", "input": "a"}, 404, "ask for 'sorter'"),
        ("embeddings", {}, 404, "POST /v1/embeddings: Not Found"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_one_sentence(address: str, path: str, body: Any, status: int, said: str) -> None:
    response = httpx.post(f"{address}/v1/{path}", json=body)
    assert response.status_code == status
    assert said in response.json()["error"]["message"]


def test_what_asks_for_nothing_is_accepted(client: openai.OpenAI) -> None:
    idle: dict[str, Any] = {"n": 1, "presence_penalty": 0, "logit_bias": {}, "user": "me", "stop": None}
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    client.chat.completions.create(model="tiny", messages=parts, max_tokens=1, **idle)


def test_texts_are_classified_and_models_listed(address: str, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "sorter"]
    assert client.models.retrieve("sorter").id == "sorter" and httpx.head(f"{address}/health").status_code == 200
    found = httpx.post(f"{address}/v1/classify", json={"model": "sorter", "input": ["a", "a long text"]}).json()["data"]
    assert found[0] == {"index": 0, "class": "yes", "is_cut": False, "probabilities": {"no": 0.25, "yes": 0.75}}
    assert found[1]["is_cut"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_row(
    serving: Callable[..., Any], gpt2: BytePairTokenizer, stream: bool, monkeypatch: Any
) -> None:
    with serving(Limits(1, 4, 60.0)) as address:
        decode = BytePairTokenizer.decode
        monkeypatch.setattr(BytePairTokenizer, "decode", lambda *given: time.sleep(0.1) or decode(*given))
        port = int(address.rsplit(":", 1)[1])
        body = httpx.Request("POST", address, json=CHAT | {"stream": stream}).content
        with socket.create_connection(("127.0.0.1", port)) as connection:
            head = ["POST /v1/chat/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
            head += [f"Content-Length: {len(body)}", "", ""]
            connection.sendall("\r\n".join(head).encode() + body)
            until(lambda: metric(address, "scratchlm_active_requests") == 1)
        until(lambda: metric(address, "scratchlm_active_requests") == 0)
        n_prompt = len(encode_prompt({"instruction": "Hi", "input": ""}, "alpaca", gpt2))
        assert metric(address, "scratchlm_generated_tokens_total") < CONTEXT - n_prompt


@pytest.mark.long
def test_a_full_queue_and_a_late_answer_are_said(serving: Callable[..., Any], monkeypatch: Any) -> None:
    with serving(Limits(1, 1, 2.0)) as address:
        decode = BytePairTokenizer.decode
        monkeypatch.setattr(BytePairTokenizer, "decode", lambda *given: time.sleep(0.1) or decode(*given))
        found: list[httpx.Response] = []
        ask = f"{address}/v1/chat/completions"
        threads = [Thread(target=lambda: found.append(httpx.post(ask, json=CHAT, timeout=30))) for _ in range(2)]
        for thread, place in zip(threads, ("active", "waiting"), strict=True):
            thread.start()
            until(lambda place=place: metric(address, f"scratchlm_{place}_requests") == 1)  # type: ignore[misc]
        full = httpx.post(ask, json=CHAT)
        for thread in threads:
            thread.join()
        assert [full.status_code, *(response.status_code for response in found)] == [429, 504, 504]
        assert full.headers["Retry-After"] == "1" and full.json()["error"]["code"] == "queue_full"
        with httpx.stream("POST", ask, json=CHAT | {"stream": True}, timeout=30) as streamed:
            lines = [line for line in streamed.iter_lines() if line]
        assert (
            '"the answer took more than 2 seconds; ask for fewer tokens"' in lines[-2] and lines[-1] == "data: [DONE]"
        )


def test_a_key_is_asked_for_and_other_names_of_this_machine_are_refused(serving: Callable[..., Any]) -> None:
    with serving(key="secret") as address:
        right, wrong = {"Authorization": "Bearer secret"}, {"Authorization": "Bearer secrets"}
        for path in ("/v1/models", "/metrics"):
            assert httpx.get(address + path, headers=right).status_code == 200
            assert httpx.get(address + path, headers=wrong).status_code == httpx.get(address + path).status_code == 401
        assert httpx.get(f"{address}/health").json() == {"status": "ok"}
        refused = httpx.get(f"{address}/health", headers={"Host": "evil.example:80"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_host")


def test_a_request_too_large_or_too_slow_is_refused(address: str, monkeypatch: Any) -> None:
    assert httpx.post(f"{address}/v1/completions", content=b" " * (guard.MAX_BODY_BYTES + 1)).status_code == 413
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.1)
    with socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1]))) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n{")
        connection.settimeout(30)
        assert connection.recv(99).startswith(b"HTTP/1.1 408")


def test_the_page_asks_nothing_of_other_sites(address: str) -> None:
    page = httpx.get(f"{address}/")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert "http://" not in page.text and "https://" not in page.text and "innerHTML" not in page.text
