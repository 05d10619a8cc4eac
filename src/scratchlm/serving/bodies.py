"""The request bodies of OpenAI's API, as far as a small model can answer them.

Source: OpenAI's API reference, Completions and Chat Completions. top_k and repetition_penalty are ours, as they are of
other servers of that API. Fields that are not supported are refused, unless they change no answer.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from scratchlm.model.generate import SamplingParams, Temperature

# Fields that change no answer
HARMLESS = {
    "user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "verbosity",
}  # fmt: skip
# Unsupported fields, with the values that ask for nothing
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "echo": (False,), "suffix": ("",), "logprobs": (False,), "top_logprobs": (0,),
    "logit_bias": ({},), "presence_penalty": (0, 0.0), "frequency_penalty": (0, 0.0), "tools": ([],),
    "functions": ([],), "tool_choice": ("none",), "function_call": ("none",), "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}  # fmt: skip
MAX_STOPS, MAX_STOP_CHARACTERS = 4, 200
MAX_TEXTS = 256  # of one classification


MaxTokens = Annotated[int, Field(ge=1, le=10**9, strict=True)]


class Body(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str


class StreamOptions(BaseModel):
    include_usage: bool = False


class GenerationBody(Body):
    """The fields that completions and chats share. temperature 0, the default, is greedy."""

    max_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    top_p: Annotated[float, Field(ge=1e-6, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, strict=True)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63, strict=True)] | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def check(self) -> "GenerationBody":
        for name, value in (self.model_extra or {}).items():
            is_neutral = any(type(value) is type(it) and value == it for it in NEUTRAL.get(name, ()))  # 0 is not False
            if value is not None and name not in HARMLESS and not is_neutral:
                raise ValueError(f"{name} is not supported by this server; leave it out")
        stops = self.stops()
        if len(stops) > MAX_STOPS or not all(0 < len(stop) <= MAX_STOP_CHARACTERS for stop in stops):
            raise ValueError(f"stop must have at most {MAX_STOPS} strings of 1 to {MAX_STOP_CHARACTERS} characters")
        return self

    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    def sampling(self) -> SamplingParams:
        return SamplingParams(
            temperature=self.temperature or 0.0,
            top_k=self.top_k or 0,
            top_p=1.0 if self.top_p is None else self.top_p,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
        )


class CompletionBody(GenerationBody):
    """prompt: text, or the token ids of one prompt."""

    prompt: str | Annotated[list[Annotated[int, Field(strict=True)]], Field(min_length=1)]


class Part(BaseModel):
    type: Literal["text"]
    text: str


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    def pair(self) -> tuple[str, str]:
        """The role and the text, as data.prompts.encode_conversation takes them."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return ("system" if self.role == "developer" else self.role), text


class ChatBody(GenerationBody):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: MaxTokens | None = None

    @model_validator(mode="after")
    def check_last(self) -> "ChatBody":
        if self.messages[-1].role != "user":
            raise ValueError("the last of the messages must be the user's")
        return self


class ClassifyBody(Body):
    input: str | Annotated[list[str], Field(min_length=1, max_length=MAX_TEXTS)]
