"""A judge that is a language model served by Ollama. Its prompt is in prompt.py, its connection in connection.py."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import httpx

from scratchlm.judge.asking import PASSING, NoReply, ServedJudge
from scratchlm.judge.connection import Connection, cause_of, error_of, said
from scratchlm.judge.prompt import QUESTION_CUT, REPLY_CUT, decoding
from scratchlm.judge.protocol import Judgement, OllamaParams
from scratchlm.judge.replies import Replies
from scratchlm.run.errors import UserError

BAD_REQUEST, NO_MODEL = 400, 404
OUTAGES = (httpx.RequestError, OSError)  # the client turns a refused connection into ConnectionError, an OSError
FOREIGN = (ValueError, TypeError, KeyError, RecursionError)  # raised for an answer that is not the protocol's
UNCUT = {"truncate": False, "shift": False}  # Ollama refuses a chat that it would cut; its client has no such keys

# The package makes a client when it is imported, which fails on a proxy, a host or certificates that it cannot use
_names = [name for name in os.environ if name.upper().endswith("_PROXY") or name.startswith(("OLLAMA_", "SSL"))]
_hidden = {name: os.environ.pop(name) for name in _names}
try:
    import ollama
finally:
    os.environ.update(_hidden)

Answer = TypeVar("Answer")


class _Connection(Connection):
    """Below Ollama's client: questions are not cut, and any status but success is an ollama.ResponseError."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            body = json.dumps(json.loads(request.read()) | UNCUT).encode()
            request.stream, request.headers["Content-Length"] = httpx.ByteStream(body), str(len(body))
        response = super().handle_request(request)
        if not response.is_success:
            raise ollama.ResponseError(json.dumps({"error": said(response)}), response.status_code)
        return response


class OllamaJudge(ServedJudge):
    """Asks a model served by Ollama for a Verdict, at temperature 0 and under a JSON schema."""

    server_name = "Ollama"
    remedy = "start it with `ollama serve`, correct {section}.host, or set {section}.backend to reference"
    _params: OllamaParams

    def __init__(self, params: OllamaParams, replies: Replies) -> None:
        """Raises UserError if the server cannot be reached or does not have the model."""
        super().__init__(params, params.host, replies)
        try:
            self._connection = _Connection(params.host, self._proxy, params.timeout_seconds)
            self._client = ollama.Client(
                host=params.host, timeout=params.timeout_seconds, follow_redirects=False, transport=self._connection
            )
        except (ValueError, ImportError, OSError) as error:  # a bad proxy, key or certificate file
            raise self._error(f"cannot be reached ({error})") from None
        self.identity = {
            "backend": "ollama",
            "model": params.model,
            "model_digest": self._model_digest(),
            "server_version": self._about(self._version, "report its version"),
            "prompt_sha256": self._prompt.sha256,
        }

    def _judgement(self, chat: Sequence[Mapping[str, str]], draw: int) -> Judgement:
        """Ollama ignores decoding settings outside `options`. Thoughts might leave no tokens for the reply."""
        sizes = {"num_ctx": self._params.context_tokens, "num_predict": self._params.max_new_tokens}
        options, schema = decoding(self._params.seed, draw) | sizes, self._prompt.schema
        request = {"messages": chat, "format": schema, "options": options, "think": False}
        question = [self.identity, request | UNCUT]
        with self._replies.asking(question):
            return self._reply(question, request)

    def _reply(self, question: Sequence[Any], request: Mapping[str, Any]) -> Judgement:
        try:
            body = self._replies.get(question) or self._ask(request)
        except ollama.ResponseError as refusal:  # for a question that does not fit
            return Judgement(None, QUESTION_CUT, _words(refusal))
        try:
            reply = ollama.ChatResponse(**json.loads(body))
        except FOREIGN:
            return Judgement(None, "", body)
        self._replies.put(question, body)
        return self._read(reply)

    def _ask(self, request: Mapping[str, Any]) -> str:
        """Return the body of a reply. Raises NoReply, or UserError if no other question would get one.

        Raises ollama.ResponseError for a question that does not fit.
        """
        try:
            with self._waiting():
                self._client.chat(self._params.model, **request)
        except ollama.ResponseError as refusal:
            if refusal.status_code == NO_MODEL:
                raise UserError(self._no_model(self._params.model)) from None
            if refusal.status_code == BAD_REQUEST and "context" in refusal.error:
                raise
            if refusal.status_code not in PASSING:
                raise self._error(f"answered {_words(refusal)}") from None
            raise NoReply(f"answered {_words(refusal)}") from None
        except FOREIGN:
            if words := error_of(self._connection.answer):  # under the status of success
                raise NoReply(f"answered with an error ({words})") from None
        return self._connection.answer.decode("utf-8", "replace")

    def _read(self, reply: ollama.ChatResponse) -> Judgement:
        """Read a reply. A score of None: it breaks the schema, or the question or the reply was cut."""
        text, thoughts = reply.message.content or "", reply.message.thinking or ""
        if (reply.prompt_eval_count or 0) >= self._params.context_tokens - 1:  # an older server cuts all the same
            return Judgement(None, QUESTION_CUT, text or thoughts)
        return self._prompt.read(text, thoughts, REPLY_CUT if reply.done_reason == "length" else "")

    def _model_digest(self) -> str:
        models = self._about(self._client.list, "answer with a list of models").models
        for model in models:
            if _full_name(model.model or "") == _full_name(self._params.model):
                return model.digest or ""
        available = ", ".join(sorted(model.model or "" for model in models)) or "none"
        raise UserError(self._no_model(_with_tag(self._params.model), f" (it has: {available})"))

    def _version(self) -> str:  # the client cannot ask for it
        client = httpx.Client(timeout=self._params.timeout_seconds, transport=self._connection)
        version = client.get(self._params.host.rstrip("/") + "/api/version").json()["version"]
        if not isinstance(version, str):
            raise TypeError
        return version

    def _about(self, ask: Callable[[], Answer], wanted: str) -> Answer:
        try:
            return ask()
        except ollama.ResponseError as refusal:
            raise self._error(f"answered {_words(refusal)}") from None
        except OUTAGES as error:
            raise self._error(f"cannot be reached ({cause_of(error)})") from None
        except FOREIGN:  # another program listens at this address
            raise self._error(f"did not {wanted}") from None

    def _no_model(self, wanted: str, hint: str = "") -> str:
        pull = f"run `ollama pull {self._params.model}` or change {self._params.section}.model"
        return f"Ollama at {self._params.host} has no model {wanted!r}{hint}; {pull}"


def _with_tag(model: str) -> str:
    """Return the name with its tag; the colon of a registry's port is none."""
    return model if ":" in model.rpartition("/")[2] else f"{model}:latest"


def _full_name(model: str) -> str:
    """Return the name without what Ollama adds itself, in lower case, because it ignores case."""
    return _with_tag(model).lower().removeprefix("registry.ollama.ai/").removeprefix("library/")


def _words(refusal: ollama.ResponseError) -> str:
    return f"{refusal.status_code} ({refusal.error})"
