"""Commands that show how a language model works: tokens, what it expects next, and its attention."""

import inspect
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from tabulate import tabulate

from scratchlm.cli.models import TOKENIZER, Model, TokenizerFolder, load_model, printer, refuse_existing, sampling_at
from scratchlm.run.display import one_line, printable, say
from scratchlm.run.errors import UserError
from scratchlm.run.files import write_text

PRETRAINED, ITS_TOKENIZER = Path("data/models/pretrain"), Path("data/tokens/tokenizer")
SEED = 1  # of the draws, so that a command repeats its text
MAX_DRAWN = 64  # tokens whose names can be read on a page
LIKELY = 4  # tokens that --explain shows of each distribution

if TYPE_CHECKING:
    from scratchlm.data.tokenizer import Tokenizer
    from scratchlm.model.gpt import GPTModel

TableOrJson = Literal["table", "json"]


@dataclass(frozen=True)
class LanguageModel:
    """The options of a model that was trained on text, by default that of pretraining."""

    model: Model = PRETRAINED
    tokenizer: TokenizerFolder = ITS_TOKENIZER

    def load(self) -> tuple["GPTModel", "Tokenizer"]:
        return load_model(self.model, self.tokenizer)


def _with_option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with an option for each field of every parameter whose type is a dataclass, in its place."""
    signature = inspect.signature(command)
    groups: dict[str, type[Any]] = {}
    options: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        kind = parameter.annotation
        if isinstance(kind, type) and is_dataclass(kind):
            groups[parameter.name] = kind
            options += inspect.signature(kind).parameters.values()
        else:
            options.append(parameter)

    @wraps(command)
    def flat(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    flat.__signature__ = signature.replace(parameters=options)  # type: ignore[attr-defined]
    return flat


def tokens(
    text: Annotated[str, typer.Argument(help="any text")],
    tokenizer: TokenizerFolder = TOKENIZER,
    format: Annotated[TableOrJson, typer.Option(help="how to print")] = "table",
) -> None:
    """Show the tokens of a text: the id and the piece of each."""
    from scratchlm.data.tokenizer import load_tokenizer

    words = load_tokenizer(tokenizer)
    rows = [{"id": token_id, "piece": words.decode([token_id])} for token_id in words.encode(text)]
    if format == "json":
        say(json.dumps(rows, ensure_ascii=False))
        return
    say(tabulate([[row["id"], _quoted(str(row["piece"]))] for row in rows], ["id", "piece"], disable_numparse=True))
    say(f"{len(rows)} tokens, {len(text)} characters, {len(os.fsencode(text))} bytes")


@_with_option_groups
def complete(
    text: Annotated[str, typer.Argument(help="the beginning of a text")],
    language_model: LanguageModel,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    temperature: Annotated[float, typer.Option(min=0)] = 0.0,
    explain: Annotated[bool, typer.Option("--explain", help="also show what was likely at each token")] = False,
    format: Annotated[TableOrJson, typer.Option(help="of --explain; json has the text, too")] = "table",
) -> None:
    """Continue a text with a language model, such as pretraining's."""
    from scratchlm.fast.decoding import for_inference
    from scratchlm.model.generate import Stopping, generate

    if format == "json" and not explain:
        raise UserError("--format json is for what --explain shows; add --explain, or leave out --format")
    sampling = sampling_at(temperature, "complete")
    gpt, words = language_model.load()
    prompt, context = words.begin_ids + words.encode(text), gpt.config.context_length
    if not prompt:
        raise UserError("the text has no tokens; give at least one word to continue")
    if explain and len(prompt) + max_new_tokens > context:
        raise UserError(
            f"--explain shows what fits the model's context of {context} tokens, but the text has {len(prompt)} and "
            f"--max-new-tokens is {max_new_tokens}; shorten one of them"
        )
    show = printer(words) if format == "table" else None
    if show:
        print(printable(text), end="", flush=True)
    stopping = Stopping(max_new_tokens, words.end_token_id)
    (found,) = generate(for_inference(gpt), [prompt], stopping, sampling, seeds=[SEED], on_token=show)
    if show:
        print(flush=True)
    if explain:
        rows = _explained(gpt, words, prompt, found.token_ids)
        if format == "json":
            whole = {"text": text, "completion": words.decode(found.token_ids), "tokens": rows}
            say(json.dumps(whole, indent=2, ensure_ascii=False))
        else:
            say(_table(rows))


def _explained(gpt: "GPTModel", words: "Tokenizer", prompt: list[int], completion: list[int]) -> list[dict[str, Any]]:
    """Each token of a completion with its probability, at temperature 1, and the tokens that were most likely."""
    import torch

    def named(token_id: int, probability: float) -> dict[str, Any]:
        return {"id": token_id, "piece": words.decode([token_id]), "probability": probability}

    with torch.no_grad():
        logits = gpt.eval()(torch.tensor([[*prompt, *completion]]))[0, len(prompt) - 1 : -1]
    return [
        named(token_id, float(p[token_id]))
        | {"likely": [named(i, float(p[i])) for i in p.topk(LIKELY).indices.tolist()]}
        for token_id, p in zip(completion, logits.softmax(-1), strict=True)
    ]


def _table(rows: list[dict[str, Any]]) -> str:
    def shown(token: dict[str, Any]) -> list[str]:
        return [_quoted(token["piece"]), f"{token['probability']:.3f}"]

    lines = [[*shown(row), ", ".join(" ".join(shown(other)) for other in row["likely"])] for row in rows]
    return tabulate(lines, ["token", "p", f"the {LIKELY} most likely at temperature 1"], disable_numparse=True)


@_with_option_groups
def attention(
    text: Annotated[str, typer.Argument(help="a short text")],
    output: Annotated[Path, typer.Option(help="a new .html file")],
    language_model: LanguageModel,
) -> None:
    """Draw the attention weights of every layer and head for a text. They are on one HTML page."""
    import torch

    from scratchlm.model.attention_weights import attention_weights
    from scratchlm.report.attention import attention_page

    refuse_existing(output)
    gpt, words = language_model.load()
    token_ids = words.begin_ids + words.encode(text)
    n_most = min(MAX_DRAWN, gpt.config.context_length)
    if not 1 <= len(token_ids) <= n_most:
        raise UserError(
            f"the text has {len(token_ids):,} tokens; give 1 to {n_most}, which fit the page and the context"
        )
    weights = attention_weights(gpt.eval(), torch.tensor(token_ids)).numpy()
    write_text(
        output, attention_page(str(language_model.model), [words.decode([token_id]) for token_id in token_ids], weights)
    )
    say(f"wrote {output}")


def _quoted(piece: str) -> str:
    """A piece of a text in quotation marks, on one line: spaces at its ends count."""
    return f'"{one_line(piece)}"'
