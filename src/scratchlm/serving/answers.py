"""Answers of the two endpoints that generate text, in the words of OpenAI's API."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Any, NamedTuple, TypeVar

from fastapi import Request as HTTPRequest
from fastapi import Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from scratchlm.run.errors import explained
from scratchlm.serving.bodies import GenerationBody
from scratchlm.serving.engine import Request, Update
from scratchlm.serving.guard import error_response
from scratchlm.serving.service import Answer, Service

CLIENT_GONE = 499  # of nginx; nobody reads it

T = TypeVar("T")


class ResponseFormat(NamedTuple):
    """How an endpoint words its answers: the prefix of their names, their type, and the type of a streamed piece."""

    prefix: str
    answer: str
    piece: str
    is_chat: bool

    def choice(self, text: str, reason: str | None) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.is_chat else {"text": text}
        return {"index": 0, **said, "logprobs": None, "finish_reason": reason}

    def delta(self, text: str, reason: str | None) -> dict[str, Any]:
        """The same for a piece of a stream."""
        said = {"delta": {"content": text} if text else {}} if self.is_chat else {"text": text}
        return {"index": 0, **said, "logprobs": None, "finish_reason": reason}


COMPLETION = ResponseFormat("cmpl-", "text_completion", "text_completion", is_chat=False)
CHAT = ResponseFormat("chatcmpl-", "chat.completion", "chat.completion.chunk", is_chat=True)


class AnswerStream(StreamingResponse):
    """Server-sent events of an answer, which is left when the client goes, before the first event, too."""

    def __init__(self, answer: Answer, pieces: AsyncIterator[str]) -> None:
        super().__init__(pieces, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self.answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.answer:
            await super().__call__(scope, receive, send)


async def respond(
    service: Service, request: Request, form: ResponseFormat, body: GenerationBody, http: HTTPRequest
) -> Response:
    """Answer when all is there, or piece by piece if the body asks for a stream. Raises Busy."""
    names = {"id": form.prefix + secrets.token_hex(12), "created": int(time.time()), "model": body.model}
    answer = service.submit(request)
    if body.stream:
        wants_usage = body.stream_options is not None and body.stream_options.include_usage
        pieces = _pieces(answer, {**names, "object": form.piece}, form, wants_usage=wants_usage)
        return AnswerStream(answer, pieces)
    with answer:
        update = await _unless_gone(http, answer.next())
    if update is None:
        return Response(status_code=CLIENT_GONE)
    if error := _error_of(update, service):
        return error
    choices = [form.choice(update.text, str(update.finish_reason))]
    return JSONResponse({**names, "object": form.answer, "choices": choices, "usage": _usage(request)})


async def _pieces(
    answer: Answer, names: dict[str, Any], form: ResponseFormat, *, wants_usage: bool
) -> AsyncIterator[str]:  # fmt: skip
    """Server-sent events: the text as it comes, then why it has ended, how much it was, and the end."""
    if form.is_chat:
        said = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        yield _event({**names, "choices": [said]})
    while True:
        update = await answer.next()
        if error := _error_of(update, answer.service):
            yield f"data: {bytes(error.body).decode()}\n\n"
            break
        if update.text:
            yield _event({**names, "choices": [form.delta(update.text, None)]})
        if update.finish_reason:
            yield _event({**names, "choices": [form.delta("", str(update.finish_reason))]})
            break
    if wants_usage:
        yield _event({**names, "choices": [], "usage": _usage(answer.request)})
    yield "data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _usage(request: Request) -> dict[str, int]:
    n_prompt, n_new = len(request.prompt), len(request.stream.token_ids)
    return {"prompt_tokens": n_prompt, "completion_tokens": n_new, "total_tokens": n_prompt + n_new}


def _error_of(update: Update, service: Service) -> JSONResponse | None:
    """The error that has ended an answer, if one has."""
    if update.finish_reason == "timeout":
        message = f"the answer took more than {service.limits.seconds:.0f} seconds; ask for fewer tokens"
        return error_response(504, message, "timeout")
    if isinstance(update.finish_reason, BaseException):
        return error_response(
            500, explained(update.finish_reason) or f"a defect: {update.finish_reason!r}", "internal_error"
        )
    return None


async def _unless_gone(http: HTTPRequest, coming: Awaitable[T]) -> T | None:
    """Wait for what is coming; None once the client has gone away."""
    work, gone = asyncio.ensure_future(coming), asyncio.ensure_future(_gone(http))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        work.cancel()
        gone.cancel()


async def _gone(http: HTTPRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
