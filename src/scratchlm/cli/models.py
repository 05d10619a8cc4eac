"""Commands on the models that the pipeline built: classify, export, import."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from scratchlm.cli.project import default_in_project, in_project
from scratchlm.run.display import one_line, printable, say
from scratchlm.run.errors import UserError

if TYPE_CHECKING:
    from scratchlm.data.tokenizer import Tokenizer
    from scratchlm.model.gpt import GPTModel

Model = Annotated[Path, typer.Option(help="a folder in data/models", callback=default_in_project)]
TokenizerFolder = Annotated[Path, typer.Option(help="the tokenizer used in training", callback=default_in_project)]
Style = Annotated[
    Literal["alpaca", "phi3", "chatml"] | None, typer.Option(help="as in finetuning; default: the one in params.yaml")
]
ASSISTANT, CLASSIFIER = Path("data/models/finetune_instruct"), Path("data/models/finetune_spam")
TOKENIZER = Path("data/tokens/finetuning_tokenizer")
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
    """Say the class of a message, such as spam or ham, and the probability of each class; or of many messages."""
    import numpy as np

    from scratchlm.data.own_data import TABLES, table_rows
    from scratchlm.data.tokenizer import load_tokenizer
    from scratchlm.formats.classifier import load_classifier
    from scratchlm.tasks.classification import class_probabilities
    from scratchlm.tasks.spam import padded_texts

    if file and text is not None:
        raise UserError("give a message or --file, not both")
    classifier, settings = load_classifier(model)
    words = load_tokenizer(tokenizer)
    _check_vocabulary(model, classifier.trunk.config.vocab_size, tokenizer, words.vocab_size)
    if file and file.suffix.lower() in TABLES:
        rows = table_rows(file, {"text": text_column}, "name the column with --text-column")
        given = [row["text"] for row in rows]
    else:
        given = _lines(file) if text is None else [text]
    width = settings.padded_tokens
    encoded = [words.begin_ids + words.encode(each) for each in given]
    texts = padded_texts(encoded, words.end_token_id, width)
    found = class_probabilities(classifier, texts, np.arange(len(texts)), ROWS_AT_ONCE).tolist() if given else []
    if format == "csv":
        print(",".join(["text", "class", *(_csv(name) for name in settings.classes)]))
    for each, row in zip(given, found, strict=True):
        ranked = sorted(zip(row, settings.classes, strict=True), key=lambda pair: -pair[0])  # stable: as argmax
        probabilities = {name: round(probability, 6) for name, probability in zip(settings.classes, row, strict=True)}
        if format == "jsonl":
            say(json.dumps({"text": each, "class": ranked[0][1], "probabilities": probabilities}, ensure_ascii=False))
        elif format == "csv":
            print(",".join([_csv(each), _csv(ranked[0][1]), *map(str, probabilities.values())]), flush=True)
        else:
            shown = "" if text is not None else f"  {one_line(each)[:SHOWN_CHARACTERS]}"
            say(f"{ranked[0][1]} ({', '.join(f'{name} {probability:.3f}' for probability, name in ranked)}){shown}")
    if n_cut := sum(len(each) > width for each in encoded):
        print(f"{n_cut} of {len(given)} texts were cut: the classifier reads {width} tokens", file=sys.stderr)


def _lines(file: Path | None) -> list[str]:
    """The lines of a text file, or of standard input, that are not blank. Raises UserError if the file is not text."""
    from scratchlm.run.files import missing

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


def export(
    output: Annotated[Path, typer.Argument(help="a new folder (huggingface) or file (gguf)")],
    format: Annotated[Literal["huggingface", "gguf"], typer.Option(help="for transformers, or for llama.cpp")],
    model: Model = ASSISTANT,
    tokenizer: TokenizerFolder = TOKENIZER,
    prompt_style: Style = None,
    half: Annotated[bool, typer.Option("--half", help="gguf: store matrices as float16")] = False,
) -> None:
    """Write a language model for transformers, or for llama.cpp and Ollama; an assistant with its chat template."""
    from scratchlm.data.byte_pairs import BytePairTokenizer
    from scratchlm.data.prompts import chat_template, check_style
    from scratchlm.formats.gguf import save_gguf
    from scratchlm.formats.huggingface import save_huggingface

    _refuse_existing(output)
    gpt, text = load_model(model, tokenizer)
    if not isinstance(text, BytePairTokenizer):
        raise UserError("only byte-pair tokenizers can be exported; set tokenizer.kind to gpt2 or bpe and rebuild")
    style = prompt_style or (_prompt_style() if model.resolve() == in_project(ASSISTANT).resolve() else None)
    template = text.pairs.settings.chat_template
    if style:
        check_style(style, text)
        template = chat_template(style, text.pairs.settings.end_token, text.pairs.settings.begin_token)
    if format == "huggingface":
        save_huggingface(output, gpt, text, template)
    else:
        save_gguf(output, gpt, text, template, half=half)
    say(f"wrote {output}")


def import_model(
    source: Annotated[
        Path, typer.Argument(help="a folder of save_pretrained, of model and tokenizer, or a .gguf file")
    ],
    output: Annotated[Path, typer.Argument(help="a new folder, for model/ and tokenizer/ in this project's format")],
) -> None:
    """Read a GPT-2, a Llama or a Qwen2 that transformers or llama.cpp's tools wrote."""
    from scratchlm.data.byte_pairs import save_byte_pairs
    from scratchlm.formats.gguf_file import GGUFFile
    from scratchlm.formats.gguf_reader import load_gguf
    from scratchlm.formats.gguf_tokenizer import read_gguf_tokenizer
    from scratchlm.formats.huggingface import load_huggingface
    from scratchlm.formats.huggingface_tokenizer import load_huggingface_tokenizer
    from scratchlm.formats.native import save_gpt
    from scratchlm.run.files import atomic_folder, read_json

    _refuse_existing(output)
    if source.suffix == ".gguf":
        pairs, gpt = read_gguf_tokenizer(file := GGUFFile(source)), load_gguf(file)
        n_padding = 0
    else:
        pairs = load_huggingface_tokenizer(source)
        gpt = load_huggingface(source, len(pairs.encoder))
        n_padding = read_json(source / "config.json")["vocab_size"] - gpt.config.vocab_size
    with atomic_folder(output) as temporary:
        save_gpt(temporary / "model", gpt)
        save_byte_pairs(temporary / "tokenizer", *pairs)
    if n_padding:
        say(f"left out {n_padding} rows of the embedding that belong to no token of the tokenizer")
    say(f"wrote {output / 'model'} and {output / 'tokenizer'}")


def _prompt_style() -> Any:
    """Return the prompt style of params.yaml. Raises UserError if it has none."""
    from scratchlm.data.prompts import PromptStyle
    from scratchlm.run.nested import value_at
    from scratchlm.run.params import load_yaml

    style = value_at(load_yaml(in_project(Path("params.yaml"))), "tokenize.instructions.prompt_style", None)
    if style not in get_args(PromptStyle):
        raise UserError(f"params.yaml: tokenize.instructions.prompt_style is {style!r}; pass --prompt-style")
    return style


def load_model(model: Path, tokenizer: Path) -> tuple["GPTModel", "Tokenizer"]:
    """A language model and its tokenizer. Raises UserError if they do not belong together."""
    from scratchlm.data.tokenizer import load_tokenizer
    from scratchlm.formats.native import load_gpt

    gpt, text = load_gpt(model), load_tokenizer(tokenizer)
    _check_vocabulary(model, gpt.config.vocab_size, tokenizer, text.vocab_size)
    return gpt, text


def _check_vocabulary(model: Path, n_model: int, tokenizer: Path, n_tokenizer: int) -> None:
    if n_model != n_tokenizer:
        raise UserError(
            f"vocabulary mismatch: {model} has {n_model:,} tokens, {tokenizer} has {n_tokenizer:,}; "
            "pass the tokenizer used in training with --tokenizer"
        )


def _refuse_existing(output: Path) -> None:
    if os.path.lexists(output):  # a link that leads nowhere, too
        raise UserError(f"{output} already exists; name a new one, nothing is overwritten")


def printer(tokenizer: "Tokenizer") -> Callable[[int, int], None]:
    """Return a function that prints text as its tokens come; an incomplete character waits for its other bytes."""
    token_ids: list[int] = []
    shown = ""

    def add(_: int, token_id: int) -> None:
        nonlocal shown
        token_ids.append(token_id)
        text = tokenizer.decode(token_ids)
        if not text.endswith("\ufffd"):
            print(printable(text.removeprefix(shown)), end="", flush=True)
            shown = text

    return add
