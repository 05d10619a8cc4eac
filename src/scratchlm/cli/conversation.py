"""A conversation with a language model, and the commands that change it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from scratchlm.cli.models import load_model, printer, sampling_at
from scratchlm.cli.project import in_project
from scratchlm.data.prompts import PromptStyle, as_message, check_style, encode_conversation, encode_prompt
from scratchlm.fast.decoding import for_inference
from scratchlm.formats.native import CONFIG_FILE, OTHER_KINDS
from scratchlm.model.generate import Stopping, generate
from scratchlm.run.display import say
from scratchlm.run.errors import UserError
from scratchlm.run.files import read_json

MODELS = Path("data/models")
HELP = """\
/input TEXT      give your next instruction an input, such as a text to rewrite
/temperature T   0 always takes the most likely token; 1 samples them as rated
/model FOLDER    talk to another model, such as pretrain; Tab shows which
/reset           forget the conversation and the input
/help            show this list

Ctrl-C stops an answer. Ctrl-D ends. The arrow up brings back earlier lines.
A line that begins with a space is an instruction, even with a / after it.
"""
ALONE = "Each line is an instruction of its own: the model does not see earlier ones."
TOGETHER = "The model sees the conversation, as much as its context of {:,} tokens holds."


class Turn(NamedTuple):
    """entry: instruction and input. answer: the model's token ids, without the end token."""

    entry: dict[str, str]
    answer: list[int]


class Conversation:
    """A model, the settings, and the turns so far."""

    def __init__(
        self, model: Path, tokenizer: Path, style: PromptStyle, max_new_tokens: int, temperature: float
    ) -> None:
        """Raises UserError if a setting is not allowed, or model, tokenizer and style do not fit each other."""
        self.sampling = sampling_at(temperature, "chat")
        self.tokenizer, self.style, self.max_new_tokens = tokenizer, style, max_new_tokens
        self.n_answers = 0
        self._load(model)
        self.reset("")
        self.commands: dict[str, Callable[[str], str]] = {
            "/input": self.set_input, "/temperature": self.set_temperature, "/model": self.set_model,
            "/reset": self.reset, "/help": self.help,
        }  # fmt: skip

    def obey(self, line: str) -> str:
        """Carry out a command and return what it says. Raises UserError, and changes nothing, if it is wrong."""
        name, _, argument = line.strip().partition(" ")
        if name not in self.commands:
            raise UserError(f"{name} is no command; there are {', '.join(self.commands)}")
        return self.commands[name](argument.strip())

    def set_input(self, text: str) -> str:
        if not text:
            raise UserError("/input needs a text; it becomes the input of your next instruction")
        self.given = text
        return "your next instruction has this input"

    def set_temperature(self, text: str) -> str:
        try:
            self.sampling = sampling_at(float(text), "chat")
        except ValueError:
            raise UserError(f"temperature is {text!r}; it must be a number: 0, or 0.001 to 100") from None
        return f"temperature {self.sampling.temperature:g}"

    def set_model(self, text: str) -> str:
        if not text:
            raise UserError(f"/model needs a folder; {MODELS} has {', '.join(model_names()) or 'none'}")
        self._load(in_project(MODELS / text) if text in model_names() else Path(text))
        return f"{self.model}: {self.reset('')}"

    def reset(self, _: str) -> str:
        self.turns: list[Turn] = []
        self.given, self.was_full = "", False
        return "a new conversation"

    def help(self, _: str) -> str:
        return HELP + (ALONE if self.style == "alpaca" else TOGETHER.format(self.context_length))

    def answer(self, instruction: str) -> None:
        """Print the answer to an instruction after the earlier turns; Ctrl-C stops it, and what was printed counts.

        Raises UserError if the prompt is longer than the model's context even without earlier turns.
        """
        entry = {"instruction": instruction, "input": self.given}
        room = self.context_length - min(self.max_new_tokens, self.context_length // 2)
        turns, prompt = latest(self.turns, lambda turns: self.prompt(turns, entry), room)
        if len(prompt) > self.context_length:
            raise UserError(
                f"the prompt would have {len(prompt):,} tokens, but the model's context has {self.context_length:,}; "
                "shorten the instruction or its input"
            )
        if len(turns) < len(self.turns) and not self.was_full:
            say(f"(the context of {self.context_length:,} tokens is full: from here on, the oldest turns are left out)")
            self.was_full = True
        self.turns, self.given, answer = turns, "", list[int]()
        try:
            self.stream(prompt, answer)
        except KeyboardInterrupt:
            say("(stopped)")
        if self.style != "alpaca":  # which has no markers between turns
            self.turns = [*turns, Turn(entry, answer)]

    def prompt(self, turns: Sequence[Turn], entry: dict[str, str]) -> list[int]:
        """Return the token ids of the prompt for an entry (instruction and input) after some turns."""
        if not turns:
            return encode_prompt(entry, self.style, self.text)
        messages: list[tuple[str, str | Sequence[int]]] = []
        for turn in turns:
            messages += [("user", as_message(turn.entry)), ("assistant", turn.answer)]
        return encode_conversation([*messages, ("user", as_message(entry))], self.style, self.text)

    def stream(self, prompt: list[int], answer: list[int]) -> None:
        """Print the answer to a prompt as its tokens come, and append these to `answer`."""
        show = printer(self.text)

        def add(row: int, token_id: int) -> None:
            answer.append(token_id)
            show(row, token_id)

        stopping, seed = Stopping(self.max_new_tokens, self.text.end_token_id), self.n_answers
        self.n_answers += 1
        try:
            generate(self.decoder, [prompt], stopping, self.sampling, seeds=[seed], on_token=add)
        finally:
            print(flush=True)

    def _load(self, model: Path) -> None:
        gpt, text = load_model(model, self.tokenizer)
        check_style(self.style, text)
        self.model, self.text, self.decoder = model, text, for_inference(gpt)
        self.context_length = gpt.config.context_length


def latest(turns: list[Turn], encode: Callable[[list[Turn]], list[int]], n_tokens: int) -> tuple[list[Turn], list[int]]:
    """Return the latest turns whose prompt has at most n_tokens, and that prompt; without turns, it may have more."""
    while len(prompt := encode(turns)) > n_tokens and turns:
        turns = turns[1:]
    return turns, prompt


def model_names() -> list[str]:
    """Return the folders of language models in data/models, such as finetune_preference/dpo."""
    models = in_project(MODELS)
    paths = [path for path in models.rglob(CONFIG_FILE) if _may_talk(path)]
    return sorted(path.parent.relative_to(models).as_posix() for path in paths)


def _may_talk(config: Path) -> bool:
    """Whether a model is no classifier or reward model; a damaged configuration is named when it is loaded."""
    try:
        return not any(kind in read_json(config) for kind in OTHER_KINDS)
    except UserError:
        return True
