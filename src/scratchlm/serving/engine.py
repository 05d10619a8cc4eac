"""Decoding for many clients at once: requests join the batch and leave it between two steps."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from scratchlm.arithmetic.functions import most_likely
from scratchlm.data.text_stream import TextStream
from scratchlm.model.generate import DecodeState, SamplingParams, finite_tokens, next_tokens
from scratchlm.model.gpt import GPTModel

PROMPT_TOKENS = 4096  # of new requests that are read before the others get their next token

FinishReason = Literal["stop", "length", "timeout"]


class Limits(NamedTuple):
    """batch_size: requests that are decoded together. waiting: others. seconds: from a request to its answer's end."""

    batch_size: int
    waiting: int
    seconds: float


class Busy(Exception):
    """As many requests wait as may."""


@dataclass(eq=False)
class Request:
    """The request of one client. prompt and max_new_tokens together fit the context.

    seed: of the draws. whole: the text is wanted once, at the end. is_cancelled: set by whoever no longer wants it.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    sampling: SamplingParams
    seed: int
    stream: TextStream
    whole: bool
    is_cancelled: bool = False
    text: str = ""  # of `whole`
    ends_at: float = field(init=False)
    generator: torch.Generator = field(init=False)

    def tokens(self) -> list[int]:
        return [*self.prompt, *self.stream.token_ids]


class Update(NamedTuple):
    """More text of a request. finish_reason: why it has ended, an error included; None before."""

    request: Request
    text: str
    finish_reason: FinishReason | BaseException | None


class Engine:
    """A thread that decodes the requests, the first to come first.

    model: of fast.decoding.for_inference. deliver: called in the thread with the updates of a step, never empty.
    """

    def __init__(
        self, model: GPTModel, end_token_id: int, limits: Limits, deliver: Callable[[list[Update]], None]
    ) -> None:  # fmt: skip
        self.model, self.end_token_id, self.limits, self.deliver = model, end_token_id, limits, deliver
        self._changed = Condition()
        self._waiting: deque[Request] = deque()
        self._active: dict[int, Request] = {}  # by their row
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._is_closing = False
        self._n_rows = 0  # ever
        self._state = DecodeState(model)
        self._thread = Thread(target=self._run, name="decoding", daemon=True)
        self._thread.start()

    @property
    def n_active(self) -> int:
        return len(self._active)

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, request: Request) -> None:
        """Let the request wait for its turn. Raises Busy."""
        request.ends_at = time.monotonic() + self.limits.seconds
        request.generator = torch.Generator().manual_seed(request.seed)
        with self._changed:
            if len(self._waiting) >= self.limits.waiting:
                raise Busy
            self._waiting.append(request)
            self._changed.notify()

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Run a function between two steps, so that it and decoding do not share the cores. Raises Busy."""
        future: Future[Any] = Future()
        with self._changed:
            if len(self._calls) >= self.limits.waiting:
                raise Busy
            self._calls.append((function, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """End the thread after the step that it computes; what is left gets no more updates."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closing or self._calls or self._waiting or self._active)
                if self._is_closing:
                    return
                updates = self._dropped()
                calls, new = list(self._calls), self._admitted()
                self._calls.clear()
            for function, future in calls:
                if future.set_running_or_notify_cancel():
                    try:
                        future.set_result(function())
                    except BaseException as error:  # noqa: BLE001 (the caller raises it)
                        future.set_exception(error)
            try:
                self._step(new, updates)
            except BaseException as error:  # noqa: BLE001 (every client is told, and the next ones are served)
                updates += [Update(request, "", error) for request in dict.fromkeys([*self._active.values(), *new])]
                self._active, self._state = {}, DecodeState(self.model)
            if updates:
                self.deliver(updates)

    def _dropped(self) -> list[Update]:
        """Remove the requests whose client has gone or whose time is over; return updates for the latter."""
        now = time.monotonic()
        requests = [*self._active.values(), *self._waiting]
        late = [request for request in requests if request.ends_at < now and not request.is_cancelled]
        gone = {*late, *(request for request in requests if request.is_cancelled)}
        if gone:
            self._active = {row: request for row, request in self._active.items() if request not in gone}
            self._waiting = deque(request for request in self._waiting if request not in gone)
        return [Update(request, request.text + request.stream.rest(), "timeout") for request in late]

    def _admitted(self) -> list[Request]:
        """Take from the queue the requests for which there are rows."""
        new: list[Request] = []
        n_tokens = 0
        while self._waiting and len(self._active) + len(new) < self.limits.batch_size:
            n_tokens += len(self._waiting[0].prompt)
            if new and n_tokens > PROMPT_TOKENS:
                break
            new.append(self._waiting.popleft())
        return new

    @torch.no_grad()
    def _step(self, new: list[Request], updates: list[Update]) -> None:
        """One token for each active request, and the first one of the new. Appends to `updates`."""
        found: list[tuple[int, Request, int]] = []
        if self._active:
            rows = {row: request.tokens() for row, request in self._active.items()}
            requests = list(self._active.values())
            if all(request.sampling.is_greedy for request in requests):
                token_ids = finite_tokens(self._state.most_likely(rows))
            else:
                token_ids = _next_tokens(self._state.next_logits(rows), requests)
            found += zip(rows, requests, token_ids, strict=True)
        else:
            self._state = DecodeState(self.model)
        if new:
            added = {self._n_rows + index: request for index, request in enumerate(new)}
            self._n_rows += len(new)
            logits = self._state.add({row: list(request.prompt) for row, request in added.items()})
            self._active |= added
            found += zip(added, new, _next_tokens(logits, new), strict=True)
        for row, request, token_id in found:
            self._advance(row, request, token_id, updates)

    def _advance(self, row: int, request: Request, token_id: int, updates: list[Update]) -> None:
        finish_reason: FinishReason | None = None
        text = ""
        if token_id == self.end_token_id:
            finish_reason = "stop"
        else:
            text = request.stream.add(token_id)
            if request.stream.stopped:
                finish_reason = "stop"
            elif len(request.stream.token_ids) == request.max_new_tokens:
                finish_reason = "length"
        if finish_reason:
            del self._active[row]
            text += request.stream.rest()
        if request.whole:
            request.text += text
            text = request.text if finish_reason else ""
        if text or finish_reason:
            updates.append(Update(request, text, finish_reason))


def _next_tokens(logits: Tensor, requests: list[Request]) -> list[int]:
    """The next token of each request, each with its own settings: (B, V) -> B ids."""
    if all(request.sampling.is_greedy for request in requests):
        return finite_tokens(most_likely(logits).tolist())
    found = []
    for row, request in zip(logits, requests, strict=True):
        found += next_tokens(row[None], [request.tokens()], request.sampling, [request.generator])
    return found
