"""A judge that is a language model served by Ollama. Its prompt is in prompt.py, its connection in connection.py."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar
from urllib.parse import urlsplit

import httpx

from scratchlm.judge.connection import QUOTED_CHARACTERS, Connection, environment_proxy, ollama
from scratchlm.judge.prompt import GREEDY, QUESTION_CUT, REPLY_CUT, Verdict, messages, prompt_sha256, read_reply
from scratchlm.judge.protocol import Judgement, OllamaJudgeParams
from scratchlm.run.errors import UserError

BACKOFF_SECONDS = 1.0  # before the second attempt at a busy server; doubled before each later one
BAD_REQUEST, NO_MODEL, BUSY = 400, 404, 503
OUTAGES = (httpx.RequestError, OSError)  # the client turns a refused connection into ConnectionError, an OSError
FOREIGN = (ValueError, TypeError, KeyError, RecursionError)  # raised for an answer that is not the protocol's

Answer = TypeVar("Answer")


class OllamaJudge:
    """Asks a model served by Ollama for a Verdict, at temperature 0 and under a JSON schema."""

    def __init__(self, params: OllamaJudgeParams) -> None:
        """Raises UserError if the server cannot be reached or does not have the model."""
        self._params, self._proxy = params, environment_proxy(params.host)
        try:
            self._connection = Connection(params.host, self._proxy, params.timeout_seconds)
            self._client = ollama.Client(
                host=params.host, timeout=params.timeout_seconds, follow_redirects=False, transport=self._connection
            )
        except (ValueError, ImportError, OSError, httpx.InvalidURL) as error:  # a bad proxy, key or certificate file
            raise self._error(f"cannot be reached ({error})") from None
        self.identity = {
            "backend": "ollama",
            "model": params.model,
            "model_digest": self._model_digest(),
            "server_version": self._about(self._version, "report its version"),
            "prompt_sha256": prompt_sha256(),
        }

    def score(self, entry: Mapping[str, str], response: str) -> Judgement:
        chat, failed, retries = messages(entry, response), Judgement(None, "", ""), self._params.retries
        for attempt in range(retries + 1):
            try:
                failed = judgement = self._judgement(self._ask(chat, self._params.seed + attempt))
                if judgement.score is not None or judgement.reason == QUESTION_CUT:
                    return judgement
            except ollama.ResponseError as refusal:
                if refusal.status_code == NO_MODEL:
                    raise UserError(self._no_model(self._params.model)) from None
                if refusal.status_code == BAD_REQUEST and "context" in refusal.error:
                    return Judgement(None, QUESTION_CUT, _words(refusal))
                if refusal.status_code != BUSY:
                    raise self._error(f"answered {_words(refusal)}") from None
                failed = Judgement(None, "", _words(refusal))
                if attempt < retries:
                    time.sleep(BACKOFF_SECONDS * 2**attempt)
            except httpx.TimeoutException:
                if attempt == retries:
                    raise UserError(
                        f"Ollama at {self._params.host} gave no reply within {self._params.timeout_seconds} seconds, "
                        f"{attempt + 1} times; raise judge.timeout_seconds or choose a smaller judge.model"
                    ) from None
            except OUTAGES as error:
                raise self._error(f"cannot be reached ({_cause(error)})") from None
            except FOREIGN:
                failed = Judgement(None, "", self._connection.answer.decode("utf-8", "replace"))
        return failed

    def _ask(self, chat: Sequence[Mapping[str, str]], seed: int) -> ollama.ChatResponse:
        """Ollama ignores decoding settings outside `options`. Thoughts might leave no tokens for the reply."""
        sizes = {"num_ctx": self._params.context_tokens, "num_predict": self._params.max_new_tokens}
        options, schema = GREEDY | sizes | {"seed": seed}, Verdict.model_json_schema()
        return self._client.chat(self._params.model, chat, format=schema, options=options, think=False)

    def _judgement(self, reply: ollama.ChatResponse) -> Judgement:
        """Read a reply. A score of None: it breaks the schema, or the question or the reply was cut."""
        text, thoughts = reply.message.content or "", reply.message.thinking or ""
        if (reply.prompt_eval_count or 0) >= self._params.context_tokens - 1:  # an older server cuts all the same
            return Judgement(None, QUESTION_CUT, text or thoughts)
        return read_reply(text, thoughts, REPLY_CUT if reply.done_reason == "length" else "")

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
            raise self._error(f"cannot be reached ({_cause(error)})") from None
        except FOREIGN:  # another program listens at this address
            raise self._error(f"did not {wanted}") from None

    def _error(self, trouble: str) -> UserError:
        """Return a sentence about the server. Behind a proxy, it is not known which of the two has the trouble."""
        server = f"Ollama at {self._params.host}"
        remedy = "start it with `ollama serve`, correct judge.host, or set judge.backend to reference"
        if self._proxy is None:
            return UserError(f"{server} {trouble}; {remedy}")
        proxy = "of the environment"
        with suppress(ValueError):
            parts = urlsplit(self._proxy)
            proxy = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"  # without its password
        return UserError(
            f"{server}, asked through the proxy {proxy}, {trouble}; if it needs no proxy, "
            f"add {urlsplit(self._params.host).hostname} to NO_PROXY, else correct the proxy or {remedy}"
        )

    def _no_model(self, wanted: str, hint: str = "") -> str:
        pull = f"run `ollama pull {self._params.model}` or change judge.model"
        return f"Ollama at {self._params.host} has no model {wanted!r}{hint}; {pull}"


def _with_tag(model: str) -> str:
    """Return the name with its tag; the colon of a registry's port is none."""
    return model if ":" in model.rpartition("/")[2] else f"{model}:latest"


def _full_name(model: str) -> str:
    """Return the name without what Ollama adds itself, in lower case, because it ignores case."""
    return _with_tag(model).lower().removeprefix("registry.ollama.ai/").removeprefix("library/")


def _words(refusal: ollama.ResponseError) -> str:
    return f"{refusal.status_code} ({refusal.error})"


def _cause(error: BaseException) -> str:
    """Return the operating system's words for a failure, or those of the HTTP library."""
    words, cause = str(error) or type(error).__name__, error.__cause__ or error.__context__
    while cause:
        words, cause = getattr(cause, "strerror", None) or words, cause.__cause__ or cause.__context__
    return words[:QUOTED_CHARACTERS]
