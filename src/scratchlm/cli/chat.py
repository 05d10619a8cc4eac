"""Talk to a language model: with commands and a history at a terminal, one instruction per line elsewhere."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scratchlm.cli.models import ASSISTANT, TOKENIZER, Model, Style, TokenizerFolder, style_of_params
from scratchlm.run.display import say
from scratchlm.run.errors import UserError, explained

if TYPE_CHECKING:
    from prompt_toolkit.history import History

    from scratchlm.cli.conversation import Conversation


def chat(
    model: Model = ASSISTANT,
    tokenizer: TokenizerFolder = TOKENIZER,
    prompt_style: Style = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    temperature: Annotated[float, typer.Option(min=0)] = 0.0,
) -> None:
    """Talk to an assistant. If the input is no terminal, answer one instruction per line, until an empty line."""
    from scratchlm.cli.conversation import Conversation

    conversation = Conversation(model, tokenizer, prompt_style or style_of_params(), max_new_tokens, temperature)
    if sys.stdin.isatty() and sys.stdout.isatty():
        _converse(conversation)
    else:
        while instruction := _line():
            prompt = conversation.prompt([], {"instruction": instruction, "input": ""})
            if len(prompt) > conversation.context_length:
                note = (
                    f"the prompt has {len(prompt):,} tokens; the model reads the last {conversation.context_length:,}"
                )
                print(note, file=sys.stderr)
            conversation.stream(prompt, [])


def _line() -> str:
    """Return a line of the input without spaces around it; its end is an empty line."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


def _converse(conversation: "Conversation") -> None:
    """Answer lines and obey commands until Ctrl-D."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter

    from scratchlm.cli.conversation import model_names

    words = [*conversation.commands, *(f"/model {name}" for name in model_names())]
    completer = WordCompleter(words, sentence=True)  # sentence: what is typed so far is compared as a whole
    session: PromptSession[str] = PromptSession(
        history=_history(), completer=completer, complete_while_typing=False, enable_suspend=True
    )
    say(f"{conversation.model}, temperature {conversation.sampling.temperature:g}; /help for help, Ctrl-D to end")
    while True:
        try:
            line = session.prompt("> ")
            if line.startswith("/"):
                say(conversation.obey(line))
            elif line.strip():
                conversation.answer(line.strip())
        except (UserError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            say(str(explained(error)))
        except KeyboardInterrupt:  # drops the line
            continue
        except EOFError:
            return


def _history() -> "History":
    """Return the lines of earlier sessions; only of this one where they cannot be kept."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class Lines(FileHistory):
        def store_string(self, string: str) -> None:
            with suppress(OSError):  # a disk that is full in mid-session; the line itself is answered
                super().store_string(string)

    try:
        return Lines(history_file())
    except (OSError, RuntimeError) as error:  # the second: there is no home
        say(f"(this session's lines are not kept: {error})")
        return InMemoryHistory()


def history_file() -> Path:
    """Return the file of the lines typed in `chat`, which only the user may read; made if it does not exist.

    Source: the XDG Base Directory Specification, version 0.8 (a relative path is to be ignored).
    """
    given = Path(os.environ.get("XDG_STATE_HOME", ""))
    file = (given if given.is_absolute() else Path.home() / ".local/state") / "scratchlm" / "chat_history"
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))  # refused for a folder
    file.chmod(0o600)
    return file
