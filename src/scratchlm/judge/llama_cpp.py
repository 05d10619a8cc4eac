"""A judge that runs a language model in this process, with llama.cpp. Its prompt is in prompt.py."""

import importlib.metadata
import importlib.util
import json
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scratchlm.judge.prompt import GREEDY, QUESTION_CUT, REPLY_CUT, decoding, load_prompt
from scratchlm.judge.protocol import Judgement, LlamaCppParams
from scratchlm.judge.replies import Replies
from scratchlm.run.context import available_cores
from scratchlm.run.errors import UserError
from scratchlm.run.files import sha256_of

if TYPE_CHECKING:
    from gguf import GGUFReader

QUOTED_CHARACTERS = 200  # of llama.cpp's own words, whose end says most
MAGIC = b"GGUF"
DAMAGED = (ValueError, TypeError, LookupError, OverflowError, MemoryError)  # of the reader, for a file that is none
INSTALL = "run `pip install --constraint requirements.lock xllamacpp`"


class LlamaCppJudge:
    """Asks a model in a GGUF file for a Verdict, by greedy decoding under a JSON schema, with the model's own template.

    The same file gives the same bits on one processor, whatever the number of threads and the order of the questions.
    """

    n_at_once = 1

    def __init__(self, params: LlamaCppParams, replies: Replies) -> None:
        """Raises UserError as check_model, or if llama.cpp cannot run the model."""
        self._params, self._replies, self._control_tokens = params, replies, _control_tokens(check_model(params))
        self._prompt = load_prompt(params.prompt)
        # Spinning threads are 20 times slower where another process computes. Read when the package is first imported
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        import xllamacpp

        settings = xllamacpp.CommonParams()
        settings.model.path = str(_path(params))
        settings.n_ctx = params.context_tokens
        settings.n_parallel = 1
        settings.n_gpu_layers = 0
        settings.cpuparams.n_threads = available_cores()
        settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # splits by threads
        settings.fit_params = False  # would change n_ctx to fit the free memory
        settings.warmup = settings.ui = False
        settings.verbosity = 0
        settings.api_keys = [secrets.token_hex()]  # it also listens on a port of this machine
        try:
            self._server = xllamacpp.Server(settings)
        except RuntimeError:
            raise self._error(
                "cannot be loaded by llama.cpp: too little memory, an unknown architecture or a faulty chat template"
            ) from None
        self._server.handle_completions({"prompt": "a", "max_tokens": 1})  # its end hangs if its loop has not begun
        empty = self._prompt.messages({"instruction": "", "input": "", "output": ""}, "")
        self._ask(empty, 1, GREEDY)  # does the template fail?
        self.identity = {
            "backend": "llama.cpp",
            "model": _path(params).name,
            "model_sha256": params.sha256,
            "xllamacpp_version": importlib.metadata.version("xllamacpp"),
            "prompt_sha256": self._prompt.sha256,
        }

    def score(self, entry: Mapping[str, str], response: str, repeat: int = 0) -> Judgement:
        chat = self._prompt.messages(entry, response, self._control_tokens)
        n_new = self._params.max_new_tokens
        settings = decoding(0, repeat) if repeat else GREEDY
        question = [self.identity, chat, self._params.context_tokens, n_new, settings]
        body = self._replies.get(question) or json.dumps(self._ask(chat, n_new, settings))
        self._replies.put(question, body)
        reply = json.loads(body)
        if "error" in reply:
            return Judgement(None, QUESTION_CUT, reply["error"]["message"])
        choice, cut = reply["choices"][0], ""
        if choice["finish_reason"] == "length":
            whole = reply["usage"]["completion_tokens"] >= self._params.max_new_tokens
            cut = REPLY_CUT if whole else QUESTION_CUT  # no room was left for the reply
        message = choice["message"]
        return self._prompt.read(message.get("content") or "", message.get("reasoning_content") or "", cut)

    def _ask(
        self, chat: Sequence[Mapping[str, str]], max_new_tokens: int, settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return an answer of llama.cpp's server: a chat completion, or `error` for a question that does not fit.

        A cached prompt would make the last bits depend on the questions before. Raises UserError for other errors.
        """
        rest: dict[str, Any] = {"cache_prompt": False, "chat_template_kwargs": {"enable_thinking": False}}
        if schema := self._prompt.schema:
            named = {"name": "verdict", "schema": schema}
            rest["response_format"] = {"type": "json_schema", "json_schema": named}
        try:
            reply = self._server.handle_chat_completions(
                {"messages": chat, "max_tokens": max_new_tokens, **settings, **rest}
            )
        except ValueError as fault:  # of a template
            reply = {"error": {"message": str(fault)}}
        error = reply.get("error", {})
        if error and error.get("type") != "exceed_context_size_error":
            words = " ".join(str(error.get("message")).split())[-QUOTED_CHARACTERS:]
            raise self._error(f"cannot be asked by llama.cpp ({words})")
        return reply

    def _error(self, trouble: str) -> UserError:
        return UserError(f"{_path(self._params)} {trouble}; choose another {self._params.section}.model")


def check_model(params: LlamaCppParams) -> "GGUFReader":
    """Return the reader of the model's file.

    Raises UserError if the package is not installed, the file is missing, has another hash or is not GGUF, its model
    has no chat template, or a shorter context than the parameter.
    """
    path, given = _path(params), f"{params.section}.model is {params.model}"
    if importlib.util.find_spec("xllamacpp") is None:
        raise UserError(f"{params.section}.backend is llama.cpp, whose package xllamacpp is not installed; {INSTALL}")
    if not path.is_file():
        raise UserError(f"{given}, but there is no such file; correct the path of the GGUF file")
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise UserError(f"{given}, which is not a GGUF file; name one that llama.cpp can run")
    if (digest := sha256_of(path)) != params.sha256:
        raise UserError(
            f"{params.section}.sha256 is {params.sha256}, but {path} has {digest}; if it is the file that you mean, "
            f"correct {params.section}.sha256"
        )
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        context_length = int(_value(reader, f"{_value(reader, 'general.architecture')}.context_length"))
        template, n_parts = _value(reader, "tokenizer.chat_template"), _value(reader, "split.count") or 1
    except DAMAGED as error:
        raise UserError(f"{given}, which cannot be read as GGUF ({error}); get it again") from None
    if n_parts > 1:  # the hash is of one part
        raise UserError(f"{path} is one of {n_parts} parts; merge them with `llama-gguf-split --merge`")
    if not template:
        raise UserError(f"{path} has no chat template, so it is no chat model; choose another {params.section}.model")
    if params.context_tokens > context_length:
        raise UserError(
            f"{params.section}.context_tokens is {params.context_tokens}, but {path.name} has a context of "
            f"{context_length} tokens; lower it to that or less"
        )
    return reader


def _control_tokens(reader: "GGUFReader") -> re.Pattern[str]:
    from gguf import TokenType

    tokens, kinds = (_value(reader, f"tokenizer.ggml.{name}") or [] for name in ("tokens", "token_type"))
    found = [token for token, kind in zip(tokens, kinds, strict=False) if kind == TokenType.CONTROL]
    return re.compile("|".join(map(re.escape, found)) or r"(?!)")


def _value(reader: "GGUFReader", key: str) -> Any:
    field = reader.get_field(key)
    return field.contents() if field else None


def _path(params: LlamaCppParams) -> Path:
    return Path(params.model).expanduser()
