"""The web server: OpenAI's API for one language model, classification, metrics and a page to chat."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Response
from fastapi import Request as HTTPRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from scratchlm.data.prompts import encode_conversation
from scratchlm.run.display import shortened
from scratchlm.run.errors import UserError
from scratchlm.serving.answers import CHAT, COMPLETION, respond
from scratchlm.serving.bodies import ChatBody, ClassifyBody, CompletionBody
from scratchlm.serving.engine import Busy
from scratchlm.serving.guard import Guard, error_response
from scratchlm.serving.service import Service, TextClassifier

LOCAL_NAMES = ["localhost", "127.0.0.1", "[::1]"]
COMPLETION_TOKENS = 16  # of a completion that names no limit, as in OpenAI's API
PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
SHOWN_MISTAKES = 3


class NotServed(Exception):
    """A model that this server does not have."""


def make_app(service: Service, classifier: TextClassifier | None, key: str | None, *, is_local: bool) -> FastAPI:
    """The application. key: what clients must send, if any. is_local: refuse other host names than this machine's.

    A page of another site may make a browser ask under a name of its own that leads to this machine; its requests
    carry that name.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.open()
        yield
        service.close()

    # The pages of documentation that FastAPI would add load scripts from other sites
    app = FastAPI(title="scratchlm", version=version("scratchlm"), lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(
        Guard, key=key, hosts=LOCAL_NAMES if is_local else None,
        count=lambda path, status: service.requests.labels(path, status).inc(),
    )  # fmt: skip
    _add_errors(app)
    _add_pages(app, service)
    _add_texts(app, service)
    _add_classes(app, service, classifier)
    names = [service.language_model.name, *([classifier.name] if classifier else [])]
    facts: dict[str, Any] = {"object": "model", "created": 0, "owned_by": "scratchlm"}
    described = [{"id": name, **facts} for name in names]
    described[0]["has_turns"] = service.language_model.style != "alpaca"  # made for more than one message of the user

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": described}

    @app.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        if name not in names:
            raise NotServed(f"the model {shortened(name, 80)!r} is not served here; ask for {' or '.join(names)}")
        return described[names.index(name)]

    return app


def _add_texts(app: FastAPI, service: Service) -> None:
    ours = service.language_model

    @app.post("/v1/completions")
    async def completions(body: CompletionBody, http: HTTPRequest) -> Response:
        _check_name(body.model, ours.name)
        prompt = body.prompt
        if isinstance(prompt, str):
            prompt = ours.tokenizer.begin_ids + ours.tokenizer.encode(prompt)
        rest = max(0, ours.model.config.context_length - len(prompt))
        request = service.request(prompt, body, body.max_tokens or min(COMPLETION_TOKENS, rest) or None)
        return await respond(service, request, COMPLETION, body, http)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody, http: HTTPRequest) -> Response:
        _check_name(body.model, ours.name)
        messages = [message.pair() for message in body.messages]
        if ours.style != "chatml" and any(role == "system" for role, _ in messages):
            raise UserError(f"the prompt style {ours.style} has no system message; leave it out")
        prompt = encode_conversation(messages, ours.style, ours.tokenizer)
        request = service.request(prompt, body, body.max_completion_tokens or body.max_tokens)
        return await respond(service, request, CHAT, body, http)


def _add_classes(app: FastAPI, service: Service, classifier: TextClassifier | None) -> None:
    @app.post("/v1/classify")
    async def classify(body: ClassifyBody) -> dict[str, Any]:
        if classifier is None:
            raise NotServed("no classifier is served; start the server with --classifier")
        _check_name(body.model, classifier.name)
        texts = [body.input] if isinstance(body.input, str) else body.input
        found, cut = await asyncio.wrap_future(service.engine.call(lambda: classifier.probabilities(texts)))
        data = [
            {"index": index, "class": classifier.classes[row.index(max(row))], "is_cut": is_cut,
             "probabilities": dict(zip(classifier.classes, row, strict=True))}
            for index, (row, is_cut) in enumerate(zip(found, cut, strict=True))
        ]  # fmt: skip
        return {"object": "list", "model": classifier.name, "data": data}


def _add_pages(app: FastAPI, service: Service) -> None:
    page, palette = (
        files(package).joinpath(name).read_text(encoding="utf-8")
        for package, name in (("scratchlm.serving", "chat.html"), ("scratchlm.report", "palette.css"))
    )
    page = page.replace("/* palette.css */", palette)

    @app.get("/")
    async def chat_page() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY, "X-Content-Type-Options": "nosniff"})

    @app.api_route("/health", methods=["GET", "HEAD"])
    async def health() -> Response:
        if not service.engine.is_alive:
            return error_response(503, "decoding has ended by a defect; start the server again", "dead")
        return JSONResponse({"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(service.registry), media_type=CONTENT_TYPE_LATEST)


def _check_name(asked: str, served: str) -> None:
    if asked != served:
        raise NotServed(f"the model {shortened(asked, 80)!r} is not served here; ask for {served!r}")


def _add_errors(app: FastAPI) -> None:
    """Every error in the form of OpenAI's API, in one sentence."""

    @app.exception_handler(UserError)
    async def refused(_: HTTPRequest, error: UserError) -> Response:
        return error_response(400, str(error), "invalid_request")

    @app.exception_handler(NotServed)
    async def not_served(_: HTTPRequest, error: NotServed) -> Response:
        return error_response(404, str(error), "model_not_found")

    @app.exception_handler(Busy)
    async def busy(_: HTTPRequest, error: Busy) -> Response:
        return error_response(429, "as many requests wait as may; try again in a second", "queue_full")

    @app.exception_handler(HTTPException)
    async def http_error(http: HTTPRequest, error: HTTPException) -> Response:
        sentence = f"{http.method} {http.url.path}: {error.detail}; /openapi.json lists what there is"
        return error_response(error.status_code, sentence, HTTPStatus(error.status_code).name.lower())

    @app.exception_handler(RequestValidationError)
    async def invalid(_: HTTPRequest, error: RequestValidationError) -> Response:
        if any(mistake["type"] == "model_attributes_type" for mistake in error.errors()):
            return error_response(400, "send a JSON object, with Content-Type: application/json", "invalid_request")
        mistakes = [
            f"{'.'.join(map(str, mistake['loc'][1:]))}: {mistake['msg'].removeprefix('Value error, ')}".lstrip(": ")
            for mistake in error.errors()[:SHOWN_MISTAKES]
        ]
        return error_response(400, "; ".join(mistakes), "invalid_request")
