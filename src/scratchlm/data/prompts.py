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
