"""The interface of every judge, its answer, and the parameters of each kind of judge."""

import ipaddress
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import AfterValidator, Field, model_validator

from scratchlm.run.params import Section, Seed

MAX_SCORE = 100
DAY_SECONDS = 86_400
MAX_CONTEXT_TOKENS = 10_000_000  # the longest context of a published model
LABEL = "[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"  # of a host name, RFC 1123, and underscores
ADDRESS = rf"https?://(?P<name>\[[0-9A-Fa-f:.]+\]|{LABEL}(\.{LABEL})*)(:(?P<port>[0-9]{{1,5}}))?/?"
MAX_NAME_CHARACTERS = 253


def server_address(host: str) -> str:
    """Return `host` if a server can have this address. Raises ValueError: else the last stage would fail on it."""
    found = re.fullmatch(ADDRESS, host)
    if found and len(found["name"]) <= MAX_NAME_CHARACTERS and 0 < int(found["port"] or 80) < 2**16:
        with suppress(ValueError):
            if found["name"].startswith("["):
                ipaddress.IPv6Address(found["name"][1:-1])
            return host
    raise ValueError("must be http:// or https://, a host name and perhaps a port, such as http://localhost:11434")


class ReferenceJudgeParams(Section):
    """No model: an exact match, or token overlap, with the reference answer."""

    backend: Literal["reference"]
    controls: Annotated[int, Field(ge=0)]


class OllamaJudgeParams(Section):
    """A language model served by Ollama.

    retries: further attempts after a reply that breaks the schema, a timeout or a busy server.
    context_tokens, max_new_tokens: sizes of question and reply; the server's defaults truncate silently.
    """

    backend: Literal["ollama"]
    controls: Annotated[int, Field(ge=0)]
    model: Annotated[str, Field(min_length=1)]
    host: Annotated[str, AfterValidator(server_address)]
    timeout_seconds: Annotated[float, Field(gt=0, le=DAY_SECONDS)]
    retries: Annotated[int, Field(ge=0, le=10)]
    seed: Seed
    context_tokens: Annotated[int, Field(ge=256, le=MAX_CONTEXT_TOKENS)]
    max_new_tokens: Annotated[int, Field(ge=16)]

    @model_validator(mode="after")
    def _leave_room_for_the_question(self) -> Self:
        if self.max_new_tokens >= self.context_tokens:
            raise ValueError(
                f"max_new_tokens ({self.max_new_tokens}) must be less than context_tokens ({self.context_tokens}), "
                "which also hold the question; raise context_tokens"
            )
        return self


JudgeParams = Annotated[ReferenceJudgeParams | OllamaJudgeParams, Field(discriminator="backend")]


@dataclass(frozen=True)
class Judgement:
    """score: None if no reply was valid; raw_reply is then the last invalid one."""

    score: float | None
    reason: str
    raw_reply: str


class Judge(Protocol):
    """identity: two runs' scores are comparable only if it is the same in both."""

    identity: dict[str, Any]

    def score(self, entry: Mapping[str, str], response: str) -> Judgement:
        """Return the grade of a response to `entry` (instruction, input and output, the reference answer)."""
