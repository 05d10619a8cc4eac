"""A judge that is a language model served by Ollama. Its prompt is in prompt.py, its connection in server.py."""

import re
import time
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from scratchlm.judge.prompt import INSTRUCTIONS, Verdict, prompt_sha256, question
from scratchlm.judge.protocol import Judgement, OllamaJudgeParams
from scratchlm.judge.server import Refusal, Server, TooSlow
from scratchlm.run.errors import UserError

BACKOFF_SECONDS = 1.0  # before the second attempt at a busy server; doubled before each later one
BAD_REQUEST, NO_MODEL, BUSY = 400, 404, 503
QUESTION_CUT = "the question does not fit into judge.context_tokens"
REPLY_CUT = "the reply was cut at judge.max_new_tokens"


Answer = TypeVar("Answer", bound=BaseModel)


class _Model(BaseModel):
    name: str
    digest: str


class _Models(BaseModel):
    models: list[_Model]


class _Version(BaseModel):
    version: str


class _Message(BaseModel):
    content: str | None = None
    thinking: str | None = None


class _Reply(BaseModel):
    """prompt_eval_count: the tokens of the question that were read, if the server says so."""

    message: _Message
    done_reason: str | None = None
    prompt_eval_count: int | None = None


class OllamaJudge:
    """Asks a model served by Ollama for a Verdict, at temperature 0 and under a JSON schema.

    Source of the protocol: github.com/ollama/ollama, docs/api.md.
    """

    def __init__(self, params: OllamaJudgeParams) -> None:
        """Raises UserError if the server cannot be reached or does not have the model."""
        remedy = "start it with `ollama serve`, correct judge.host, or set judge.backend to reference"
        self._params, self._server = params, Server("Ollama", params.host, params.timeout_seconds, remedy)
        self.identity = {
            "backend": "ollama",
            "model": params.model,
            "model_digest": self._model_digest(),
            "server_version": self._about("/api/version", _Version, "report its version").version,
            "prompt_sha256": prompt_sha256(),
        }

    def score(self, entry: Mapping[str, str], response: str) -> Judgement:
        text, failed, retries = question(entry, response), Judgement(None, "", ""), self._params.retries
        for attempt in range(retries + 1):
            try:
                body = self._server.call("/api/chat", self._request(text, self._params.seed + attempt))
                failed = judgement = self._judgement(body)
                if judgement.score is not None or judgement.reason == QUESTION_CUT:
                    return judgement
            except Refusal as refusal:
                if refusal.status == NO_MODEL:
                    raise UserError(self._no_model(self._params.model)) from None
                if refusal.status == BAD_REQUEST and "context" in refusal.words:
                    return Judgement(None, QUESTION_CUT, str(refusal))
                if refusal.status != BUSY:
                    raise self._server.error(f"answered {refusal}") from None
                failed = Judgement(None, "", str(refusal))
                if attempt < retries:
                    time.sleep(BACKOFF_SECONDS * 2**attempt)
            except TooSlow:
                if attempt == retries:
                    raise UserError(
                        f"Ollama at {self._params.host} gave no reply within {self._params.timeout_seconds} seconds, "
                        f"{attempt + 1} times; raise judge.timeout_seconds or choose a smaller judge.model"
                    ) from None
        return failed

    def _request(self, text: str, seed: int) -> dict[str, Any]:
        """Return a chat request. Ollama ignores decoding settings outside `options`.

        think: else a model that thinks may use up its tokens before it replies. truncate, shift: a new server then
        refuses a question that it would cut. An older one ignores them, but reports how many tokens it read.
        """
        options = {
            "temperature": 0,
            "top_k": 1,
            "repeat_penalty": 1.0,
            "seed": seed,
            "num_ctx": self._params.context_tokens,
            "num_predict": self._params.max_new_tokens,
        }
        messages = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": text}]
        uncut = {"think": False, "truncate": False, "shift": False, "stream": False}
        schema = Verdict.model_json_schema()
        return {"model": self._params.model, "messages": messages, "format": schema, "options": options, **uncut}

    def _judgement(self, body: bytes) -> Judgement:
        """Read a reply. A score of None: it is not the protocol's, breaks the schema, or one of the two was cut."""
        try:
            reply = _Reply.model_validate_json(body)
        except ValidationError:
            return Judgement(None, "", body.decode("utf-8", "replace"))
        text = reply.message.content or ""
        raw = text or reply.message.thinking or ""
        if (reply.prompt_eval_count or 0) >= self._params.context_tokens - 1:
            return Judgement(None, QUESTION_CUT, raw)
        try:
            verdict = Verdict.model_validate_json(_without_thoughts(text))
        except ValidationError:
            return Judgement(None, REPLY_CUT if reply.done_reason == "length" else "", raw)
        return Judgement(float(verdict.score), verdict.reason, raw)

    def _model_digest(self) -> str:
        models = self._about("/api/tags", _Models, "answer with a list of models").models
        for model in models:
            if _full_name(model.name) == _full_name(self._params.model):
                return model.digest
        available = ", ".join(sorted(model.name for model in models)) or "none"
        raise UserError(self._no_model(_with_tag(self._params.model), f" (it has: {available})"))

    def _about(self, path: str, kind: type[Answer], wanted: str) -> Answer:
        try:
            return kind.model_validate_json(self._server.call(path))
        except Refusal as refusal:
            raise self._server.error(f"answered {refusal}") from None
        except TooSlow:
            raise self._server.error("cannot be reached (timed out)") from None
        except ValidationError:  # another program listens at this address
            raise self._server.error(f"did not {wanted}") from None

    def _no_model(self, wanted: str, hint: str = "") -> str:
        pull = f"run `ollama pull {self._params.model}` or change judge.model"
        return f"Ollama at {self._params.host} has no model {wanted!r}{hint}; {pull}"


def _with_tag(model: str) -> str:
    """Return the name with its tag; the colon of a registry's port is none."""
    return model if ":" in model.rpartition("/")[2] else f"{model}:latest"


def _full_name(model: str) -> str:
    """Return the name without what Ollama adds itself, in lower case, because it ignores case."""
    return _with_tag(model).lower().removeprefix("registry.ollama.ai/").removeprefix("library/")


def _without_thoughts(reply: str) -> str:
    """Return the reply without the thoughts before it, whose first tag may be in the prompt, and without a fence."""
    text = reply.strip()
    if not text.startswith("{"):
        text = text.rpartition("</think>")[2].strip()
    return re.sub(r"\A```(?:json)?\s*(.*?)\s*```\Z", r"\1", text, flags=re.DOTALL)
