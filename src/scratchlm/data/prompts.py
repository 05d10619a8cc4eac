"""The prompt templates: how an instruction is worded for the model."""

from collections.abc import Mapping, Sequence
from typing import Literal

from scratchlm.data.tokenizer import Tokenizer
from scratchlm.run.errors import UserError

PromptStyle = Literal["alpaca", "phi3", "chatml"]
START, END = "<|im_start|>", "<|im_end|>"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
# SmolLM2's, character for character
CHATML_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    f"{{{{ '{START}system\n{SYSTEM}{END}\n' }}}}{{% endif %}}"
    f"{{{{'{START}' + message['role'] + '\n' + message['content'] + '{END}' + '\n'}}}}{{% endfor %}}"
    f"{{% if add_generation_prompt %}}{{{{ '{START}assistant\n' }}}}{{% endif %}}"
)


def format_prompt(entry: Mapping[str, str], style: PromptStyle) -> str:
    """Return the whole text before the response to `entry` (instruction and input, which may be empty).

    Sources: Taori et al. 2023 (alpaca); the book's exercise 7.1 (phi3); SmolLM2's chat template (chatml).
    """
    if style == "alpaca":
        given = f"\n\n### Input:\n{entry['input']}" if entry["input"] else ""
        return (
            "Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request."
            f"\n\n### Instruction:\n{entry['instruction']}{given}\n\n### Response:\n"
        )
    if style == "phi3":
        return f"<|user|>\n{as_message(entry)}\n<|assistant|>:\n"
    return f"{START}system\n{SYSTEM}{END}\n{START}user\n{as_message(entry)}{END}\n{START}assistant\n"


def as_message(entry: Mapping[str, str]) -> str:
    """Return an entry as one message, as the styles that have turns word it."""
    return f"{entry['instruction']}\n{entry['input']}" if entry["input"] else entry["instruction"]


def encode_prompt(entry: Mapping[str, str], style: PromptStyle, tokenizer: Tokenizer) -> list[int]:
    """Return the token ids of format_prompt's text, after begin_ids, with its markers as special tokens.

    The same characters in the entry are text. Raises UserError if the tokenizer lacks the markers.
    """
    if style == "chatml":
        return encode_conversation([("user", as_message(entry))], style, tokenizer)
    return [*tokenizer.begin_ids, *tokenizer.encode(format_prompt(entry, style))]


def encode_conversation(
    messages: Sequence[tuple[str, str | Sequence[int]]], style: PromptStyle, tokenizer: Tokenizer
) -> list[int]:
    """Return the token ids of what chat_template words: a prompt for the answer to the last message.

    messages: pairs of a role (system, user or assistant) and a text, or the token ids of an answer.
    Raises UserError as encode_prompt does.
    """
    check_style(style, tokenizer)
    token_ids = [*tokenizer.begin_ids]
    if style == "chatml":
        start, end, line_end = *(tokenizer.special_tokens[marker] for marker in (START, END)), tokenizer.encode("\n")
        if messages[0][0] != "system":
            messages = [("system", SYSTEM), *messages]
        for role, said in messages:
            last = tokenizer.end_token_id if role == "assistant" else end
            name = f"{role}\n"
            words = tokenizer.encode(name + said) if isinstance(said, str) else [*tokenizer.encode(name), *said]
            token_ids += [start, *words, last, *line_end]
        return [*token_ids, start, *tokenizer.encode("assistant\n")]
    for role, said in messages:
        if role == "user":
            token_ids += tokenizer.encode(format_prompt({"instruction": str(said), "input": ""}, style))
        elif role == "assistant":
            token_ids += [*(tokenizer.encode(said) if isinstance(said, str) else said), tokenizer.end_token_id]
    return token_ids


def check_style(style: PromptStyle, tokenizer: Tokenizer) -> None:
    """Raise UserError if a prompt of this style has markers that are no special tokens of the tokenizer."""
    if style == "chatml" and not {START, END} <= tokenizer.special_tokens.keys():
        raise UserError(
            f"prompt style chatml needs the special tokens {START} and {END}, which this tokenizer lacks; "
            "choose alpaca or phi3, or the tokenizer of a model that has them, such as SmolLM2"
        )


def chat_template(style: PromptStyle, end_token: str, begin_token: str | None = None) -> str:
    """Return the Jinja template that words a list of messages as format_prompt does, for other programs.

    The text begins with begin_token. An answer of the assistant ends with end_token, as in training. Messages of other
    roles are left out, but chatml has them all.
    """
    if style == "chatml":
        role = "message['role'] == 'assistant'"
        ending = f"'{END}'" if end_token == END else f"('{end_token}' if {role} else '{END}')"
        return (begin_token or "") + CHATML_TEMPLATE.replace(f"+ '{END}' +", f"+ {ending} +")
    prompt = format_prompt({"instruction": "{{ message['content'] }}", "input": ""}, style)
    answer = "{{ message['content'] }}" + end_token
    return (begin_token or "") + (
        "{% for message in messages %}{% if message['role'] == 'user' %}" + prompt
        + "{% elif message['role'] == 'assistant' %}" + answer + "{% endif %}{% endfor %}"
    )  # fmt: skip
