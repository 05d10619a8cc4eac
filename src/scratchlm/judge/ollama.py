"""A judge that is a language model served by Ollama. Its prompt is in prompt.py."""

import json
import time
from collections.abc import Mapping

import httpx
import ollama
from pydantic import ValidationError

from scratchlm.judge.prompt import INSTRUCTIONS, Verdict, prompt_sha256, question
from scratchlm.judge.protocol import Judgement, OllamaJudgeParams
from scratchlm.run.errors import UserError

BACKOFF_SECONDS = 1.0  # before the second attempt at a busy server; doubled before each later one
BUSY, NO_MODEL = 503, 404
# The client turns a refused connection into ConnectionError, an OSError
FAILURES = (ollama.ResponseError, httpx.TransportError, OSError)


class OllamaJudge:
    """Asks a model served by Ollama for a Verdict, at temperature 0 and under a JSON schema."""

    def __init__(self, params: OllamaJudgeParams) -> None:
        """Raises UserError if the server cannot be reached or does not have the model."""
        self._params = params
        self._client = ollama.Client(host=params.host, timeout=params.timeout_seconds)
        self.identity = {
            "backend": "ollama",
            "model": params.model,
            "model_digest": self._model_digest(),
            "server_version": self._server_version(),
            "prompt_sha256": prompt_sha256(),
        }

    def score(self, entry: Mapping[str, str], response: str) -> Judgement:
        text, reply, retries = question(entry, response), "", self._params.retries
        for attempt in range(retries + 1):
            try:
                reply = self._ask(text, self._params.seed + attempt)
                verdict = Verdict.model_validate_json(reply)
                return Judgement(float(verdict.score), verdict.reason, reply)
            except (ValidationError, json.JSONDecodeError):
                continue
            except ollama.ResponseError as error:
                if error.status_code == NO_MODEL:
                    raise UserError(self._no_model(self._params.model)) from None
                if error.status_code != BUSY:
                    raise self._failure(error) from None
                reply = f"{error.status_code} {error.error}"
                if attempt < retries:
                    time.sleep(BACKOFF_SECONDS * 2**attempt)
            except httpx.TimeoutException:
                if attempt == retries:
                    raise UserError(
                        f"Ollama at {self._params.host} gave no reply within {self._params.timeout_seconds} seconds, "
                        f"{attempt + 1} times; raise judge.timeout_seconds or choose a smaller judge.model"
                    ) from None
            except FAILURES as error:
                raise self._failure(error) from None
        return Judgement(None, "", reply)

    def _ask(self, text: str, seed: int) -> str:
        """Return the raw reply. Ollama ignores decoding settings outside `options`."""
        options = {
            "temperature": 0,
            "top_k": 1,
            "repeat_penalty": 1.0,
            "seed": seed,
            "num_ctx": self._params.context_tokens,
            "num_predict": self._params.max_new_tokens,
        }
        messages = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": text}]
        schema = Verdict.model_json_schema()
        return self._client.chat(self._params.model, messages, format=schema, options=options).message.content or ""

    def _model_digest(self) -> str:
        try:
            models = self._client.list().models
        except FAILURES as error:
            raise self._failure(error) from None
        except ValueError:  # another program listens at this address
            raise UserError(self._advice("did not answer with a list of models")) from None
        wanted = self._params.model if ":" in self._params.model else f"{self._params.model}:latest"
        for model in models:
            if model.model == wanted:
                return model.digest or ""
        available = ", ".join(sorted(model.model or "" for model in models)) or "none"
        raise UserError(self._no_model(wanted, f" (it has: {available})"))

    def _server_version(self) -> str:
        try:
            url = self._params.host.rstrip("/") + "/api/version"
            return httpx.get(url, timeout=self._params.timeout_seconds).json()["version"]
        except (httpx.HTTPError, KeyError, ValueError) as error:
            raise UserError(self._advice(f"did not report its version ({error})")) from None

    def _failure(self, error: Exception) -> UserError:
        if isinstance(error, ollama.ResponseError):
            return UserError(self._advice(f"answered {error.status_code} ({error.error})"))
        return UserError(self._advice(f"cannot be reached ({error})"))

    def _no_model(self, wanted: str, hint: str = "") -> str:
        pull = f"run `ollama pull {self._params.model}` or change judge.model"
        return f"Ollama at {self._params.host} has no model {wanted!r}{hint}; {pull}"

    def _advice(self, trouble: str) -> str:
        return (
            f"Ollama at {self._params.host} {trouble}; start it with `ollama serve`, correct judge.host, "
            "or set judge.backend to reference"
        )
