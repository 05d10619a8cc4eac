"""An HTTP server in place of Ollama's or of OpenAI's API, and llama.cpp's own server, which can stand behind it.

Ollama itself cannot run in a test. The stand-in speaks the part of its protocol that the judge uses
(/api/version, /api/tags, /api/chat without streaming), and that of OpenAI's (/v1/models, /v1/chat/completions);
what it answers comes from the test.
Sources of the protocols: github.com/ollama/ollama, docs/api.md; github.com/openai/openai-openapi.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import requests
import xllamacpp

Request = dict[str, Any]
UNTRIED = {"controls": 0, "repeats": 0, "second": None, "pairwise": []}  # keys of a judge section


class Refusal(NamedTuple):
    """An HTTP error, as Ollama words it."""

    status: int
    error: str


class RawAnswer(NamedTuple):
    """Any bytes: what a program that is not Ollama might send."""

    body: bytes
    status: int = 200


class Cut(NamedTuple):
    """A reply whose connection ends after a part of it."""

    part: bytes


class Reply(NamedTuple):
    """A chat reply with other fields than usual; `message` replaces the whole message."""

    fields: dict[str, Any]


Answer = str | Refusal | RawAnswer | Cut | Reply


class OllamaStandIn(ThreadingHTTPServer):
    """Answers /api/chat with what `handler` makes of the request; a text becomes the reply's content."""

    daemon_threads = True

    def __init__(self, handler: Callable[[Request], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.handler = handler
        self.version: str | Refusal | RawAnswer = json.dumps({"version": "0.12.3"})
        self.tags: str | Refusal | RawAnswer | None = None  # instead of the list of `models`
        self.models = {"llama3:latest": "365c0bd3c000", "llama3:70b": "786f3184aec0"}  # name with tag -> digest
        self.requests: list[Request] = []
        self.keys: list[str | None] = []  # of every call

    @property
    def host(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: OllamaStandIn

    def do_GET(self) -> None:
        self.server.keys.append(self.headers["Authorization"])
        if self.path == "/v1/models":
            listed = [{"id": name, "object": "model", "owned_by": "stand-in"} for name in self.server.models]
            self._send(self.server.tags or json.dumps({"object": "list", "data": listed}))
        elif self.path == "/api/version":
            self._send(self.server.version)
        elif self.path == "/api/tags":
            self._send(self.server.tags or json.dumps({"models": [_tag(*item) for item in self.server.models.items()]}))
        else:
            self._send(Refusal(404, "404 page not found"))

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request)
        self.server.keys.append(self.headers["Authorization"])
        if self.path == "/v1/chat/completions":
            answer = self.server.handler(request)
            if isinstance(answer, str | Reply):
                return self._send(json.dumps(_completion(request, answer)))
            return self._send(answer)
        if self.path != "/api/chat":
            return self._send(Refusal(404, "404 page not found"))
        if _with_tag(request["model"]) not in self.server.models:
            return self._send(Refusal(404, f"model '{request['model']}' not found"))
        answer = self.server.handler(request)
        if isinstance(answer, Reply):
            return self._send(json.dumps(_chat_reply(request, "") | answer.fields))
        return self._send(json.dumps(_chat_reply(request, answer)) if isinstance(answer, str) else answer)

    def _send(self, answer: str | Refusal | RawAnswer | Cut) -> None:
        if isinstance(answer, Cut):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(answer.part)
            self.close_connection = True
            return
        if isinstance(answer, Refusal):
            self.send_response(answer.status)
            body = json.dumps({"error": answer.error}).encode()
        else:
            self.send_response(answer.status if isinstance(answer, RawAnswer) else 200)
            body = answer.body if isinstance(answer, RawAnswer) else answer.encode()
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(ConnectionError):  # a judge that no longer waits
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def ollama_stand_in(handler: Callable[[Request], Answer]) -> Iterator[OllamaStandIn]:
    """A running stand-in on a free port of this machine."""
    server = OllamaStandIn(handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def llama_server(gguf: Path, n_context: int) -> xllamacpp.Server:
    """llama.cpp's own server over a GGUF file; it stops when the object goes."""
    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.hostnames = ["127.0.0.1"]
    params.n_ctx = n_context
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32  # its default is float16
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it rounds to float16, too
    params.fit_params = False
    params.warmup = False
    params.verbosity = 0
    server = xllamacpp.Server(params)
    # Its end waits for ever if its loop begins after that; a first answer shows that it has begun
    request = {"prompt": "a", "n_predict": 1}
    requests.post(f"{server.listening_address}/completion", json=request, timeout=60).raise_for_status()
    return server


def _with_tag(name: str) -> str:
    """As Ollama completes names: it ignores case; its own registry and the tag `latest` are the defaults."""
    name = name.lower().removeprefix("registry.ollama.ai/").removeprefix("library/")
    return name if ":" in name.split("/")[-1] else f"{name}:latest"


def _tag(name: str, digest: str) -> dict[str, Any]:
    details = {"format": "gguf", "family": "llama", "parameter_size": "8.0B", "quantization_level": "Q4_0"}
    moment = "2025-05-04T17:37:44.706015396-07:00"
    return {"name": name, "model": name, "modified_at": moment, "size": 1, "digest": digest, "details": details}


def _chat_reply(request: Request, content: str) -> dict[str, Any]:
    return {
        "model": request["model"],
        "created_at": "2025-05-04T19:22:45.499127Z",
        "message": {"role": "assistant", "content": content},
        "done": True,
        "done_reason": "stop",
        "total_duration": 1,
        "prompt_eval_count": 1,
        "eval_count": 1,
    }


def _completion(request: Request, answer: str | Reply) -> dict[str, Any]:
    """Return an answer in OpenAI's form. A Reply has Ollama's fields."""
    fields = answer.fields if isinstance(answer, Reply) else {"message": {"content": answer}}
    message = {"role": "assistant", **fields["message"]}
    if "thinking" in message:
        message["reasoning_content"] = message.pop("thinking")
    choice = {"index": 0, "message": message, "finish_reason": fields.get("done_reason", "stop")}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": f"{request['model']}-0613",
        "system_fingerprint": "fp_1",
        "choices": [choice],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
