"""The bridge between the event loop that talks to clients and the thread that decodes for them."""

import asyncio
import secrets
import time
from collections.abc import Callable
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from scratchlm.data.prompts import PromptStyle
from scratchlm.data.text_stream import TextStream
from scratchlm.data.tokenizer import Tokenizer
from scratchlm.model.gpt import GPTModel
from scratchlm.run.errors import UserError
from scratchlm.serving.bodies import GenerationBody
from scratchlm.serving.engine import Engine, Limits, Request, Update

SEED_BITS = 63


class LanguageModel(NamedTuple):
    """name: in the API. model: of fast.decoding.for_inference. style: of the prompts of chats."""

    name: str
    model: GPTModel
    tokenizer: Tokenizer
    style: PromptStyle


class TextClassifier(NamedTuple):
    """probabilities: texts -> for each the probability of each class, and whether it was cut."""

    name: str
    classes: list[str]
    probabilities: Callable[[list[str]], tuple[list[list[float]], list[bool]]]


class Answer:
    """The updates of one request. Leaving the `with` block before its end frees the row."""

    def __init__(self, service: "Service", request: Request, queue: "asyncio.Queue[Update]") -> None:
        self.service, self.request, self._queue = service, request, queue
        self._started, self._n_counted = time.monotonic(), 0

    def __enter__(self) -> "Answer":
        return self

    def __exit__(self, *_: object) -> None:
        self.service.forget(self.request)

    async def next(self) -> Update:
        """The next update; none comes after one with a finish_reason."""
        update, service = await self._queue.get(), self.service
        n_new = len(self.request.stream.token_ids)
        if n_new and not self._n_counted:
            service.prompt_tokens.inc(len(self.request.prompt))
            service.first_text.observe(time.monotonic() - self._started)
        service.new_tokens.inc(n_new - self._n_counted)
        self._n_counted = n_new
        if update.finish_reason:
            service.duration.observe(time.monotonic() - self._started)
        return update


class Service:
    """Answers of one language model, counted."""

    def __init__(self, language_model: LanguageModel, limits: Limits) -> None:
        self.language_model, self.limits = language_model, limits
        self._queues: dict[Request, asyncio.Queue[Update]] = {}
        self._engine: Engine | None = None
        self.registry = CollectorRegistry()
        at = self.registry
        self.requests = Counter("scratchlm_requests", "Requests by path and status", ["path", "status"], registry=at)
        self.prompt_tokens = Counter("scratchlm_prompt_tokens", "Tokens of prompts that were read", registry=at)
        self.new_tokens = Counter("scratchlm_generated_tokens", "Tokens that were generated", registry=at)
        self.first_text = Histogram("scratchlm_first_text_seconds", "From a request to its first text", registry=at)
        self.duration = Histogram("scratchlm_answer_seconds", "From a request to the end of its answer", registry=at)
        active = Gauge("scratchlm_active_requests", "Requests that are decoded together", registry=at)
        active.set_function(lambda: self.engine.n_active)
        waiting = Gauge("scratchlm_waiting_requests", "Requests that wait for a row", registry=at)
        waiting.set_function(lambda: self.engine.n_waiting)

    @property
    def engine(self) -> Engine:
        assert self._engine, "the service is open"
        return self._engine

    def open(self) -> None:
        """Start to decode; called in the event loop."""
        loop = asyncio.get_running_loop()
        model, tokenizer = self.language_model.model, self.language_model.tokenizer

        def deliver(updates: list[Update]) -> None:
            loop.call_soon_threadsafe(self._dispatch, updates)

        self._engine = Engine(model, tokenizer.end_token_id, self.limits, deliver)

    def close(self) -> None:
        self.engine.close()

    def request(self, prompt: list[int], body: GenerationBody, max_new_tokens: int | None) -> Request:
        """The request for an answer to `prompt`. max_new_tokens: None for what fits the context. Raises UserError."""
        context = self.language_model.model.config.context_length
        rest = context - len(prompt)
        if not prompt:
            raise UserError("the prompt has no tokens; give at least one word")
        if bad := [token_id for token_id in prompt if not 0 <= token_id < self.language_model.tokenizer.vocab_size]:
            raise UserError(f"token id {bad[0]} is not one of the {self.language_model.tokenizer.vocab_size:,} tokens")
        if rest < 1 and max_new_tokens is None:
            raise UserError(
                f"the prompt has {len(prompt):,} tokens, but the model's context has {context:,}; shorten it"
            )
        if max_new_tokens is not None and rest < max_new_tokens:
            raise UserError(
                f"the prompt has {len(prompt):,} tokens and {max_new_tokens:,} new ones are asked for, but the "
                f"model's context has {context:,}; shorten the prompt or ask for less"
            )
        seed = secrets.randbits(SEED_BITS) if body.seed is None else body.seed % (1 << SEED_BITS)
        stream = TextStream(self.language_model.tokenizer.decode, body.stops())
        return Request(prompt, max_new_tokens or rest, body.sampling(), seed, stream, whole=not body.stream)

    def submit(self, request: Request) -> "Answer":
        """Let the request wait for its turn. Raises Busy."""
        self.engine.submit(request)
        self._queues[request] = asyncio.Queue()
        return Answer(self, request, self._queues[request])

    def forget(self, request: Request) -> None:
        """Give its row to others, if it still has one."""
        request.is_cancelled = True
        self._queues.pop(request, None)

    def _dispatch(self, updates: list[Update]) -> None:
        for update in updates:
            if queue := self._queues.get(update.request):
                queue.put_nowait(update)
