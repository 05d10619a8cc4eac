"""The interface of every judge, its answer, and the parameters of each kind of judge."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field

from scratchlm.run.params import Section

MAX_SCORE = 100


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
    host: Annotated[str, Field(pattern=r"^https?://[^/]+/?$")]
    timeout_seconds: Annotated[float, Field(gt=0)]
    retries: Annotated[int, Field(ge=0, le=10)]
    seed: Annotated[int, Field(ge=0)]
    context_tokens: Annotated[int, Field(ge=256)]
    max_new_tokens: Annotated[int, Field(ge=16)]


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
