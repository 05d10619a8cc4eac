"""Commands on the models that the pipeline built: classify."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import numpy as np
import typer

from scratchlm.cli.project import default_in_project, in_project
from scratchlm.data.tables import TABLES, table_rows
from scratchlm.run.display import one_line, printable, say
from scratchlm.run.errors import UserError
from scratchlm.run.files import missing
from scratchlm.run.nested import value_at
from scratchlm.run.params import check_params, load_yaml

if TYPE_CHECKING:
    from scratchlm.data.tokenizer import Tokenizer
    from scratchlm.model.generate import SamplingParams
    from scratchlm.model.gpt import GPTModel

Model = Annotated[Path, typer.Option(help="a folder in data/models", callback=default_in_project)]
TokenizerFolder = Annotated[Path, typer.Option(help="the tokenizer used in training", callback=default_in_project)]
Style = Annotated[
    Literal["alpaca", "phi3", "chatml"] | None, typer.Option(help="as in finetuning; default: the one in params.yaml")
]
ASSISTANT, CLASSIFIER = Path("data/models/finetune_instruct"), Path("data/models/finetune_spam")
TOKENIZER = Path("data/tokens/finetuning_tokenizer")
Classify = Callable[[list[str]], tuple[list[list[float]], list[bool]]]
ROWS_AT_ONCE = 32  # texts that are classified together
SHOWN_CHARACTERS = 60  # of each of many texts


def classify(
    text: Annotated[str | None, typer.Argument(help="a message; without one, the lines of standard input")] = None,
    file: Annotated[
        Path | None, typer.Option(help="texts: a .csv, .tsv, .jsonl, .json or .parquet table, or one per line")
    ] = None,
    text_column: Annotated[str, typer.Option(help="the column of the table with the texts")] = "text",
    format: Annotated[Literal["text", "csv", "jsonl"], typer.Option(help="how to print")] = "text",
    model: Model = CLASSIFIER,
    tokenizer: TokenizerFolder = TOKENIZER,
) -> None:
    """Say the class of a message and the probability of each class. There may be many messages."""
    if file and text is not None:
        raise UserError("give a message or --file, not both")
    classes, n_read, probabilities_of = load_text_classifier(model, tokenizer)
    if file and file.suffix.lower() in TABLES:
        rows = table_rows(file, {"text": text_column}, "name the column with --text-column")
        given = [row["text"] for row in rows]
    else:
        given = _lines(file) if text is None else [text]
    found, cut = probabilities_of(given)
    if format == "csv":
        print(",".join(["text", "class", *(_csv(name) for name in classes)]))
    for each, row in zip(given, found, strict=True):
        ranked = sorted(zip(row, classes, strict=True), key=lambda pair: -pair[0])  # stable: as argmax
        probabilities = {name: round(probability, 6) for name, probability in zip(classes, row, strict=True)}
        if format == "jsonl":
            say(json.dumps({"text": each, "class": ranked[0][1], "probabilities": probabilities}, ensure_ascii=False))
        elif format == "csv":
            print(",".join([_csv(each), _csv(ranked[0][1]), *map(str, probabilities.values())]), flush=True)
        else:
            shown = "" if text is not None else f"  {one_line(each)[:SHOWN_CHARACTERS]}"
            say(f"{ranked[0][1]} ({', '.join(f'{name} {probability:.3f}' for probability, name in ranked)}){shown}")
    if any(cut):
        print(f"{sum(cut)} of {len(given)} texts were cut: the classifier reads {n_read} tokens", file=sys.stderr)


def load_text_classifier(folder: Path, tokenizer: Path) -> tuple[list[str], int, Classify]:
    """The names of the classes, how many tokens of a text are read, and a function from texts to the probabilities of
    each class and to whether the text was cut.

    Raises UserError if model and tokenizer have different vocabulary sizes.
    """
    from scratchlm.data.tokenizer import load_tokenizer
    from scratchlm.formats.classifier import load_classifier
    from scratchlm.tasks.classification import class_probabilities
    from scratchlm.tasks.spam import padded_texts

    classifier, settings = load_classifier(folder)
    words = load_tokenizer(tokenizer)
    check_vocabulary(folder, classifier.backbone.config.vocab_size, tokenizer, words.vocab_size)

    def classified(given: list[str]) -> tuple[list[list[float]], list[bool]]:
        encoded = [words.begin_ids + words.encode(text) for text in given]
        texts = padded_texts(encoded, words.end_token_id, settings.padded_tokens)
        found = class_probabilities(classifier, texts, np.arange(len(texts)), ROWS_AT_ONCE).tolist() if given else []
        return found, [len(token_ids) > settings.padded_tokens for token_ids in encoded]

    return settings.classes, settings.padded_tokens, classified


def _lines(file: Path | None) -> list[str]:
    """The lines of a text file, or of standard input, that are not blank. Raises UserError if the file is not text."""
    try:
        if not file and sys.stdin.isatty():
            print("type messages, one per line, and end with Ctrl-D", file=sys.stderr)
        text = (file.read_bytes() if file else sys.stdin.buffer.read()).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise missing(Path(error.filename)) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file or 'standard input'}: not UTF-8 text ({error}); convert it to UTF-8") from None
    return [line.removesuffix("\r") for line in text.split("\n") if line.strip()]


def _csv(text: str) -> str:
    """A field of a CSV file; quotation marks around every text keep it one."""
    return '"' + printable(text).replace('"', '""') + '"'


def style_of_params() -> Any:
    """Return the prompt style of params.yaml. Raises UserError if it has none."""
    from scratchlm.data.prompts import PromptStyle

    style = value_at(load_yaml(in_project(Path("params.yaml"))), "tokenize.instructions.prompt_style", None)
    if style not in get_args(PromptStyle):
        raise UserError(f"params.yaml: tokenize.instructions.prompt_style is {style!r}; pass --prompt-style")
    return style


def load_model(model: Path, tokenizer: Path) -> tuple["GPTModel", "Tokenizer"]:
    """A language model and its tokenizer. Raises UserError if they do not belong together."""
    from scratchlm.data.tokenizer import load_tokenizer
    from scratchlm.formats.native import load_gpt

    gpt, text = load_gpt(model), load_tokenizer(tokenizer)
    check_vocabulary(model, gpt.config.vocab_size, tokenizer, text.vocab_size)
    return gpt, text


def check_vocabulary(model: Path, n_model: int, tokenizer: Path, n_tokenizer: int) -> None:
    if n_model != n_tokenizer:
        raise UserError(
            f"vocabulary mismatch: {model} has {n_model:,} tokens, {tokenizer} has {n_tokenizer:,}; "
            "pass the tokenizer used in training with --tokenizer"
        )


def refuse_existing(output: Path) -> None:
    """Raises UserError if there is a file, a folder or a link of this name."""
    if os.path.lexists(output):  # a link that leads nowhere, too
        raise UserError(f"{output} already exists; name a new one, nothing is overwritten")


def sampling_at(temperature: float, source: str) -> "SamplingParams":
    """Greedy decoding, but at a temperature that `source`, a command, was given. Raises UserError if not allowed."""
    from scratchlm.model.generate import GREEDY, SamplingParams

    return check_params(GREEDY.model_dump() | {"temperature": temperature}, SamplingParams, source=source, whole=True)


def printer(tokenizer: "Tokenizer") -> Callable[[int, int], None]:
    """Return a function that prints text as its tokens come; an incomplete character waits for its other bytes."""
    from scratchlm.data.text_stream import TextStream

    stream = TextStream(tokenizer.decode)
    return lambda _, token_id: print(printable(stream.add(token_id)), end="", flush=True)
