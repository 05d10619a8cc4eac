"""The interface of every judge, its answer, and the parameters of each kind of judge."""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self

from pydantic import AfterValidator, Field, model_validator

from scratchlm.run.params import Section, Seed

MAX_SCORE = 100
DAY_SECONDS = 86_400
MAX_CONTEXT_TOKENS = 10_000_000  # the longest context of a published model
LABEL = "[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"  # of a host name, RFC 1123, and underscores
ADDRESS = rf"https?://(\[[0-9A-Fa-f:.]+\]|{LABEL}(\.{LABEL})*)(:(?P<port>[0-9]{{1,5}}))?"
PATH = "(/[A-Za-z0-9._~-]+)*"
MAX_NAME_CHARACTERS = 253
CONTROL, REPEAT, SECOND = "control_", "repeat_", "second_"  # begin the model of a record that is no variant's
REORDERED = "reordered"  # the model of a record of a response that was judged again in reverse order


def server_address(host: str) -> str:
    """Return `host` if a server can have this address. Raises ValueError: else the last stage would fail on it."""
    if _is_address(host, ADDRESS):
        return host
    raise ValueError("must be http:// or https://, a host name and perhaps a port, such as http://localhost:11434")


def api_address(url: str) -> str:
    """Return `url` if an API can have this address: server_address and a path. Raises ValueError."""
    if _is_address(url, ADDRESS + PATH):
        return url
    raise ValueError("must be http:// or https://, a host name and perhaps a path, such as http://localhost:8000/v1")


def _is_address(url: str, pattern: str) -> bool:
    import httpx  # takes 0.1 seconds, and most judges have no address

    if found := re.fullmatch(f"{pattern}/?", url):
        with suppress(httpx.InvalidURL, UnicodeError):
            address = httpx.URL(url)
            is_name = address.host != "" and len(address.raw_host) <= MAX_NAME_CHARACTERS  # host: decoded punycode
            return is_name and 0 < int(found["port"] or 80) < 2**16
    return False


def path_anywhere(path: str) -> str:
    """Return `path` if it names the same file from every folder. Raises ValueError: clones would not have the file."""
    if path.startswith(("/", "~/")):
        return path
    raise ValueError("must begin with / or ~/, such as ~/models/judge.gguf, because `verify` and `build` run in clones")


class ReferenceParams(Section):
    """No model: an exact match, or token overlap, with the reference answer."""

    section: ClassVar[str] = "judge.second"
    backend: Literal["reference"]


class LanguageModelParams(Section):
    """A language model as a judge.

    section: where its keys are in params.yaml. prompt: a template of prompt.py. max_new_tokens: of a reply.
    """

    section: ClassVar[str] = "judge.second"
    prompt: Literal["anchored", "book"]
    max_new_tokens: Annotated[int, Field(ge=16)]


class ContextParams(LanguageModelParams):
    """A language model whose context is set here. context_tokens: size of question and reply together."""

    context_tokens: Annotated[int, Field(ge=256, le=MAX_CONTEXT_TOKENS)]

    @model_validator(mode="after")
    def _leave_room_for_the_question(self) -> Self:
        if self.max_new_tokens >= self.context_tokens:
            raise ValueError(
                f"max_new_tokens ({self.max_new_tokens}) must be less than context_tokens ({self.context_tokens}), "
                "which also hold the question; raise context_tokens"
            )
        return self


class ServedModelParams(LanguageModelParams):
    """A language model behind a server.

    retries: further attempts after a reply that breaks the schema, a timeout or trouble of the server.
    """

    model: Annotated[str, Field(min_length=1)]
    timeout_seconds: Annotated[float, Field(gt=0, le=DAY_SECONDS)]
    retries: Annotated[int, Field(ge=0, le=10)]
    seed: Seed


class OllamaParams(ServedModelParams, ContextParams):
    """A language model served by Ollama."""

    backend: Literal["ollama"]
    host: Annotated[str, AfterValidator(server_address)]


class OpenAIParams(ServedModelParams):
    """A language model behind OpenAI's chat API.

    key_variable: the environment variable that has the key, or None for a server that needs none.
    """

    backend: Literal["openai"]
    base_url: Annotated[str, AfterValidator(api_address)]
    key_variable: Annotated[str, Field(pattern="^[A-Za-z_][A-Za-z0-9_]*$")] | None


class LlamaCppParams(ContextParams):
    """A language model in a GGUF file, run in this process. Greedy decoding always gives the same: no seed, no retries.

    model: the path of the file. sha256: of its content.
    """

    backend: Literal["llama.cpp"]
    model: Annotated[str, AfterValidator(path_anywhere)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


SecondParams = Annotated[ReferenceParams | OllamaParams | OpenAIParams | LlamaCppParams, Field(discriminator="backend")]


class ReferenceJudgeParams(ReferenceParams):
    """The reference judge as the only judge. controls: answers with known scores to judge, of each kind."""

    section: ClassVar[str] = "judge"
    controls: Annotated[int, Field(ge=0)]


def _two_names(pair: list[str]) -> list[str]:
    """Raises ValueError for anything but two names."""
    if len(set(pair)) == len(pair) == 2:
        return pair
    raise ValueError("must be two different variants, the baseline first, such as [instruct, dpo]")


class Trials(Section):
    """How far a language model that judges is tried.

    repeats: responses to judge again, N_REPEATS times with other seeds and once in reverse order. second: a judge of
    the same responses and controls. pairwise: pairs of variants whose responses are compared, the baseline first.
    """

    section: ClassVar[str] = "judge"
    controls: Annotated[int, Field(ge=0)]
    repeats: Annotated[int, Field(ge=0)]
    second: SecondParams | None
    pairwise: list[Annotated[list[str], AfterValidator(_two_names)]]


class OllamaJudgeParams(Trials, OllamaParams):
    """As the judge of all responses."""


class OpenAIJudgeParams(Trials, OpenAIParams):
    """As the judge of all responses."""


class LlamaCppJudgeParams(Trials, LlamaCppParams):
    """As the judge of all responses."""


JudgeParams = Annotated[
    ReferenceJudgeParams | OllamaJudgeParams | OpenAIJudgeParams | LlamaCppJudgeParams, Field(discriminator="backend")
]


@dataclass(frozen=True)
class Judgement:
    """score: None if no reply was valid; raw_reply is then the last invalid one."""

    score: float | None
    reason: str
    raw_reply: str


class Judge(Protocol):
    """identity: two runs' scores are comparable only if it is the same in both.

    n_at_once: how many threads may call `score` at the same time.
    """

    identity: dict[str, Any]
    n_at_once: int

    def score(self, entry: Mapping[str, str], response: str, repeat: int = 0) -> Judgement:
        """Return the grade of a response to `entry` (instruction, input and output, the reference answer).

        repeat: 0, or the number of a repetition, for which a language model draws its reply with another seed.
        """
