"""The command that serves a model over HTTP."""

import logging
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scratchlm.cli.models import (
    ASSISTANT,
    CLASSIFIER,
    TOKENIZER,
    Model,
    Style,
    TokenizerFolder,
    load_model,
    load_text_classifier,
    style_of_params,
)
from scratchlm.cli.project import in_project
from scratchlm.run.errors import UserError

if TYPE_CHECKING:
    from scratchlm.serving.service import TextClassifier

KEY = "SCRATCHLM_API_KEY"
WAITING_PER_REQUEST = 4
SECONDS = 300.0  # from asking to the end of an answer
GOODBYE_SECONDS = 5  # for answers that are not complete when the server ends
LOCAL = ("127.0.0.1", "localhost", "::1")


def serve(
    model: Model = ASSISTANT,
    tokenizer: TokenizerFolder = TOKENIZER,
    prompt_style: Style = None,
    classifier: Annotated[
        Path | None,
        typer.Option(help="also serve this classifier; default: finetune_spam's, with its tokenizer"),
    ] = None,
    address: Annotated[str, typer.Option(help="host and port; port 0 takes a free one")] = "127.0.0.1:8000",
    batch_size: Annotated[int, typer.Option(min=1, help="requests that are decoded together")] = 32,
) -> None:
    """Serve models: OpenAI's API, a page to chat, classes, metrics. SCRATCHLM_API_KEY sets a key."""
    import uvicorn

    from scratchlm.data.prompts import check_style
    from scratchlm.fast.decoding import for_inference
    from scratchlm.serving.app import make_app
    from scratchlm.serving.engine import Limits
    from scratchlm.serving.service import LanguageModel, Service

    listener, host = _listen(address)
    key = _key(host)
    gpt, text = load_model(model, tokenizer)
    style = prompt_style or style_of_params()
    check_style(style, text)
    ours = LanguageModel(model.resolve().name, for_inference(gpt), text, style)
    limits = Limits(batch_size, WAITING_PER_REQUEST * batch_size, SECONDS)
    classes = _classes(classifier, tokenizer)
    app = make_app(Service(ours, limits), classes, key, is_local=host in LOCAL)
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=GOODBYE_SECONDS)
    url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print(f"serving {ours.name}{f' and {classes.name}' if classes else ''} at {url}", flush=True)
            print(f"a page to chat: {url}/   OpenAI's API: {url}/v1   Ctrl-C ends", flush=True)

    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of clients that have gone away
    logging.getLogger("uvicorn.error").addFilter(_is_no_shutdown)
    with suppress(KeyboardInterrupt):  # uvicorn passes Ctrl-C on, after its last answers
        Server(config).run(sockets=[listener])


def _classes(classifier: Path | None, tokenizer: Path) -> "TextClassifier | None":
    """The classifier to serve: the named one, else the project's, if there is one and `tokenizer` is its own."""
    from scratchlm.serving.service import TextClassifier

    usual = in_project(CLASSIFIER)
    folder = classifier or (usual if tokenizer == in_project(TOKENIZER) and usual.exists() else None)
    if folder is None:
        return None
    names, _, probabilities = load_text_classifier(folder, tokenizer)
    return TextClassifier(folder.resolve().name, names, probabilities)


def _key(host: str) -> str | None:
    """The key that clients must send, or None, with a warning if other machines reach the server.

    Raises UserError for a key that no header can hold.
    """
    key = os.environ.get(KEY) or None
    if key and not (key.isascii() and key.isprintable() and key == key.strip()):
        raise UserError(f"{KEY} must be printable ASCII without spaces at its ends; set another")
    if key is None and host not in LOCAL:
        print(
            f"anybody who reaches {host} may ask this server; set {KEY} to a key that clients must send",
            file=sys.stderr,
        )
    return key


def _is_no_shutdown(record: logging.LogRecord) -> bool:
    """Whether a line of uvicorn's log says more than that the shutdown has cut an answer off."""
    from asyncio import CancelledError  # takes a moment

    error = record.exc_info[1] if record.exc_info else None
    is_end = isinstance(error, CancelledError | KeyboardInterrupt)
    return not is_end and "asyncio.exceptions.CancelledError" not in record.getMessage()


def _listen(address: str) -> tuple[socket.socket, str]:
    """Take the address; before the model is loaded, since it may be refused. Raises UserError."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not address.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65535:
        raise UserError(f"--address is {address!r}; give a host and a port, such as 127.0.0.1:8000")
    try:
        listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, int(port)))
        listener.listen()
    except OSError as error:
        raise UserError(f"cannot listen at {address} ({error.strerror}); choose another --address") from None
    return listener, host
