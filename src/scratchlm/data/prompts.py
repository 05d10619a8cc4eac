"""The prompt templates: how an instruction is worded for the model."""

from collections.abc import Mapping
from typing import Literal

PromptStyle = Literal["alpaca", "phi3"]


def format_prompt(entry: Mapping[str, str], style: PromptStyle) -> str:
    """Return the whole text before the response to `entry` (instruction and input, which may be empty).

    Sources: Taori et al. 2023 (alpaca); the book's exercise 7.1 (phi3).
    """
    if style == "alpaca":
        given = f"\n\n### Input:\n{entry['input']}" if entry["input"] else ""
        return (
            "Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request."
            f"\n\n### Instruction:\n{entry['instruction']}{given}\n\n### Response:\n"
        )
    given = f"\n{entry['input']}" if entry["input"] else ""
    return f"<|user|>\n{entry['instruction']}{given}\n<|assistant|>:\n"


def chat_template(style: PromptStyle, end_of_text: str) -> str:
    """Return the Jinja template that words a list of messages as format_prompt does, for other programs.

    An answer of the assistant ends with end_of_text, as in training; messages of other roles are left out.
    """
    prompt = format_prompt({"instruction": "{{ message['content'] }}", "input": ""}, style)
    answer = "{{ message['content'] }}" + end_of_text
    return (
        "{% for message in messages %}{% if message['role'] == 'user' %}" + prompt
        + "{% elif message['role'] == 'assistant' %}" + answer + "{% endif %}{% endfor %}"
    )  # fmt: skip
