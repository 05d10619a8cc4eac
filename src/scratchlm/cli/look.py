"""Commands that show how a language model works: tokens, what it expects next, and its attention."""

import json
import os
from pathlib import Path
from typing import Annotated, Literal

import typer
from tabulate import tabulate

from scratchlm.cli.models import TOKENIZER, Model, TokenizerFolder, load_model, printer, refuse_existing, sampling_at
from scratchlm.run.display import one_line, printable, say
from scratchlm.run.errors import UserError

PRETRAINED, ITS_TOKENIZER = Path("data/models/pretrain"), Path("data/tokens/tokenizer")
SEED = 1  # of the draws, so that a command repeats its text
MAX_DRAWN = 64  # tokens whose names can be read on a page
LIKELY = 4  # tokens that --explain shows of each distribution

Format = Annotated[Literal["table", "json"], typer.Option(help="how to print")]


def tokens(
    text: Annotated[str, typer.Argument(help="any text")],
    tokenizer: TokenizerFolder = TOKENIZER,
    format: Format = "table",
) -> None:
    """Show the tokens of a text: their ids and their pieces of it."""
    from scratchlm.data.tokenizer import load_tokenizer

    words = load_tokenizer(tokenizer)
    rows = [{"id": token_id, "piece": words.decode([token_id])} for token_id in words.encode(text)]
    if format == "json":
        say(json.dumps(rows, ensure_ascii=False))
        return
    say(tabulate([[row["id"], _quoted(str(row["piece"]))] for row in rows], ["id", "piece"], disable_numparse=True))
    say(f"{len(rows)} tokens, {len(text)} characters, {len(os.fsencode(text))} bytes")


def complete(
    text: Annotated[str, typer.Argument(help="the beginning of a text")],
    model: Model = PRETRAINED,
    tokenizer: TokenizerFolder = ITS_TOKENIZER,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    temperature: Annotated[float, typer.Option(min=0)] = 0.0,
    explain: Annotated[bool, typer.Option("--explain", help="also show what was likely at each token")] = False,
) -> None:
    """Continue a text with a language model, such as that of pretraining."""
    from scratchlm.fast.decoding import for_inference
    from scratchlm.model.generate import Stopping, generate

    sampling = sampling_at(temperature, "complete")
    gpt, words = load_model(model, tokenizer)
    prompt, context = words.begin_ids + words.encode(text), gpt.config.context_length
    if not prompt:
        raise UserError("the text has no tokens; give at least one word to continue")
    if explain and len(prompt) + max_new_tokens > context:
        raise UserError(
            f"--explain shows what fits the model's context of {context} tokens, but the text has {len(prompt)} and "
            f"--max-new-tokens is {max_new_tokens}; shorten one of them"
        )
    print(printable(text), end="", flush=True)
    stopping = Stopping(max_new_tokens, words.end_token_id)
    (found,) = generate(for_inference(gpt), [prompt], stopping, sampling, seeds=[SEED], on_token=printer(words))
    print(flush=True)
    if explain:
        import torch

        with torch.no_grad():
            logits = gpt.eval()(torch.tensor([[*prompt, *found.token_ids]]))[0, len(prompt) - 1 : -1]
        rows = []
        for token_id, p in zip(found.token_ids, logits.softmax(-1), strict=True):
            likely = ", ".join(f"{_quoted(words.decode([int(i)]))} {p[i]:.3f}" for i in p.topk(LIKELY).indices)
            rows.append([_quoted(words.decode([token_id])), f"{p[token_id]:.3f}", likely])
        say(tabulate(rows, ["token", "p", f"the {LIKELY} most likely at temperature 1"], disable_numparse=True))


def attention(
    text: Annotated[str, typer.Argument(help="a short text")],
    output: Annotated[Path, typer.Option(help="a new .html file")],
    model: Model = PRETRAINED,
    tokenizer: TokenizerFolder = ITS_TOKENIZER,
) -> None:
    """Draw the attention weights of every layer and head for a text, on one HTML page."""
    import torch

    from scratchlm.model.attention_weights import attention_weights
    from scratchlm.report.attention import attention_page
    from scratchlm.run.files import write_text

    refuse_existing(output)
    gpt, words = load_model(model, tokenizer)
    token_ids = words.begin_ids + words.encode(text)
    n_most = min(MAX_DRAWN, gpt.config.context_length)
    if not 1 <= len(token_ids) <= n_most:
        raise UserError(
            f"the text has {len(token_ids):,} tokens; give 1 to {n_most}, which fit the page and the context"
        )
    weights = attention_weights(gpt.eval(), torch.tensor(token_ids)).numpy()
    write_text(output, attention_page(str(model), [words.decode([token_id]) for token_id in token_ids], weights))
    say(f"wrote {output}")


def _quoted(piece: str) -> str:
    """A piece of a text in quotation marks, on one line: spaces at its ends count."""
    return f'"{one_line(piece)}"'
