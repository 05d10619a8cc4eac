"""A judge behind OpenAI's chat API: vLLM, llama.cpp's server, LM Studio, hosted models. Its prompt is in prompt.py."""

import json
import os
import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import httpx

from scratchlm.judge.asking import PASSING, NoReply, ServedJudge
from scratchlm.judge.connection import Connection, error_of, said
from scratchlm.judge.prompt import QUESTION_CUT, REPLY_CUT, decoding
from scratchlm.judge.protocol import Judgement, OpenAIParams
from scratchlm.judge.replies import Replies
from scratchlm.run.errors import UserError

FOREIGN = (ValueError, TypeError, LookupError, AttributeError, RecursionError)  # for what is not the protocol's
UNAUTHORIZED, NO_LIST, TOO_LONG = (401, 403), (404, 405, 501), (400, 413, 422)
KEY = r"[!#-\[\]-~]+"  # printable, and the same text in JSON
ABOUT_MODEL = ("owned_by", "root", "meta")  # of an entry of /models: not when it was loaded
MAX_NAMES = 10
UNFINISHED = {"length": REPLY_CUT, "content_filter": "the server filtered the reply"}


class _Connection(Connection):
    """A connection that hides the key wherever the server repeats it."""

    def __init__(self, params: OpenAIParams, proxy: str | None, key: str) -> None:
        super().__init__(params.base_url, proxy, params.timeout_seconds)
        self._key = key

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        if not self._key:
            return response
        hidden = re.compile("|".join(map(re.escape, (self._key, self._key.replace("/", "\\/")))))
        content = hidden.sub("(key)", response.content.decode("utf-8", "replace")).encode()
        headers = {name: hidden.sub("(key)", value) for name, value in response.headers.items() if name == "location"}
        return httpx.Response(response.status_code, headers=headers, content=content)


class OpenAIJudge(ServedJudge):
    """Asks a served model for a Verdict, at temperature 0 and under a JSON schema."""

    server_name = "the server"
    remedy = "start it, correct {section}.base_url, or set {section}.backend to reference"
    _params: OpenAIParams

    def __init__(self, params: OpenAIParams, replies: Replies) -> None:
        """Raises UserError as api_key, or if the server cannot be reached, refuses, or does not have the model."""
        super().__init__(params, params.base_url, replies)
        self._url, self._noting = params.base_url.rstrip("/"), threading.Lock()
        key = api_key(params)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            self._connection = _Connection(params, self._proxy, key)
            self._client = httpx.Client(timeout=params.timeout_seconds, transport=self._connection, headers=headers)
        except (ValueError, ImportError, OSError) as error:  # a bad proxy or certificate file
            raise self._error(f"cannot be reached ({error})") from None
        about = {"base_url": self._url, "model": params.model, **self._about_model()}
        self._server = {"backend": "openai", **about, "prompt_sha256": self._prompt.sha256}
        self.identity: dict[str, Any] = dict(self._server)  # and what replies say of themselves

    def _judgement(self, chat: Sequence[Mapping[str, str]], draw: int) -> Judgement:
        settings, form = decoding(self._params.seed, draw), {}
        if self._prompt.schema:
            schema = self._prompt.schema | {"additionalProperties": False}
            verdict = {"name": "verdict", "strict": True, "schema": schema}
            form = {"response_format": {"type": "json_schema", "json_schema": verdict}}
        request = {
            "model": self._params.model,
            "messages": chat,
            "max_tokens": self._params.max_new_tokens,
            "temperature": settings["temperature"],
            "seed": settings["seed"],
            "stream": False,
            **form,
        }
        question = [self._server, request]
        with self._replies.asking(question):
            return self._reply(question)

    def _reply(self, question: Sequence[Any]) -> Judgement:
        """question: what identifies the server, and the request."""
        body = self._replies.get(question)
        if body is None:
            response = self._asked("POST", "/chat/completions", question[1])
            if response.status_code in TOO_LONG and re.search("context|too long", said(response)):
                return Judgement(None, QUESTION_CUT, f"{response.status_code} ({said(response)})")
            self._refuse(response)
            if words := error_of(response.content):  # under the status of success
                raise NoReply(f"answered with an error ({words})")
            body = response.content.decode("utf-8", "replace")
        try:
            found = self._read(json.loads(body))
        except FOREIGN:
            return Judgement(None, "", body)
        self._replies.put(question, body)
        return found

    def _read(self, reply: Mapping[str, Any]) -> Judgement:
        """Raises one of FOREIGN for a reply that is not the protocol's."""
        choice = reply["choices"][0]
        message = choice["message"]
        text = message.get("content") or message.get("refusal") or ""
        thoughts = message.get("reasoning_content") or message.get("reasoning") or ""
        found = self._prompt.read("" + text, "" + thoughts, UNFINISHED.get(choice.get("finish_reason"), ""))
        with self._noting:
            for name in ("model", "system_fingerprint"):
                if isinstance(value := reply.get(name), str):
                    seen = self.identity.setdefault(f"replies_{name}", [])
                    seen[:] = sorted({*seen, value})
        return found

    def _asked(self, method: str, path: str, request: Mapping[str, Any] | None = None) -> httpx.Response:
        with self._waiting():
            return self._client.request(method, self._url + path, json=request)

    def _refuse(self, response: httpx.Response) -> None:
        """Raises NoReply or UserError for any status but success."""
        words = f"answered {response.status_code} ({said(response)})"
        if response.status_code in PASSING:
            raise NoReply(words)
        if response.status_code in UNAUTHORIZED:
            name = self._params.key_variable
            have = (
                f"set the environment variable {name} to" if name else "name in {section}.key_variable the variable of"
            )
            raise self._error(words, f"{have} a key that the server accepts")
        if not response.is_success:
            raise self._error(words)

    def _about_model(self) -> dict[str, Any]:
        """Return what the server's list of models says of this one, if it has a list."""
        try:
            response = self._asked("GET", "/models")
            if response.status_code in NO_LIST:
                return {}
            self._refuse(response)
        except NoReply as trouble:
            raise self._error(str(trouble), trouble.remedy) from None
        with suppress(*FOREIGN):
            models = {model["id"]: model for model in response.json()["data"]}
            if self._params.model in models:
                found = models[self._params.model]
                return {name: found[name] for name in ABOUT_MODEL if found.get(name)}
            names = ", ".join(sorted(models)[:MAX_NAMES]) or "none"
            raise self._error(f"has no model {self._params.model!r} (it has: {names})", "change {section}.model")
        raise self._error("did not answer with a list of models")


def api_key(params: OpenAIParams) -> str:
    """Return the key, or "" if the parameters name no variable. Raises UserError, without the key, for a bad one."""
    if params.key_variable is None:
        return ""
    key = os.environ.get(params.key_variable, "").strip()
    if not re.fullmatch(KEY, key):
        state = "has characters that no key has" if key else "is not set"
        raise UserError(
            f"{params.section}.key_variable is {params.key_variable}, but that environment variable {state}; set it "
            f"to the server's key, or {params.section}.key_variable to null if the server needs none"
        )
    return key
