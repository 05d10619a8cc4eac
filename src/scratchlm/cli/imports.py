"""The command that reads models of other programs."""

from pathlib import Path
from typing import Annotated

import typer

from scratchlm.cli.models import refuse_existing
from scratchlm.run.display import say
from scratchlm.run.errors import UserError
from scratchlm.run.files import atomic_folder, missing, read_json


def import_model(
    source: Annotated[
        Path, typer.Argument(help="a folder of save_pretrained, of model and tokenizer, or a .gguf file")
    ],
    output: Annotated[Path, typer.Argument(help="a new folder, for model/ and tokenizer/ in this project's format")],
    base: Annotated[Path | None, typer.Option(help="of an adapter of PEFT: its base model's folder")] = None,
) -> None:
    """Read a GPT-2, Llama or Qwen2 of transformers or llama.cpp.

    Classifiers of transformers are read, too. An adapter of PEFT is merged into its base model.
    """
    from scratchlm.data.byte_pairs import save_byte_pairs
    from scratchlm.formats.classifier import save_classifier
    from scratchlm.formats.gguf_file import GGUFFile
    from scratchlm.formats.gguf_reader import load_gguf
    from scratchlm.formats.gguf_tokenizer import read_gguf_tokenizer
    from scratchlm.formats.huggingface import load_huggingface
    from scratchlm.formats.huggingface_classifier import is_huggingface_classifier, load_huggingface_classifier
    from scratchlm.formats.huggingface_tokenizer import load_huggingface_tokenizer
    from scratchlm.formats.native import save_gpt
    from scratchlm.formats.peft import ADAPTER_CONFIG

    refuse_existing(output)
    _check_base(source, base)
    classifier, n_padding = None, 0
    if source.is_file():
        pairs, gpt = read_gguf_tokenizer(file := GGUFFile(source)), load_gguf(file)
    else:
        folder, adapter = base or source, source if base else None
        _check_folder(folder)
        pairs = load_huggingface_tokenizer(folder)
        if is_huggingface_classifier(folder, adapter):
            classifier, settings = load_huggingface_classifier(folder, len(pairs.encoder), adapter)
            gpt = classifier.backbone
        else:
            gpt = load_huggingface(folder, len(pairs.encoder), adapter)
        n_padding = read_json(folder / "config.json")["vocab_size"] - gpt.config.vocab_size
    with atomic_folder(output) as temporary:
        if classifier:
            save_classifier(
                temporary / "model", classifier, classes=settings.classes, padded_tokens=settings.padded_tokens
            )
        else:
            save_gpt(temporary / "model", gpt)
        save_byte_pairs(temporary / "tokenizer", *pairs)
    if base:
        named = Path(str(read_json(source / ADAPTER_CONFIG).get("base_model_name_or_path"))).name
        if named != base.name:
            say(f"the adapter was trained on {named}: make sure that {base} is that model")
    if n_padding:
        say(f"left out {n_padding} rows of the embedding that belong to no token of the tokenizer")
    say(f"wrote {output / 'model'} and {output / 'tokenizer'}")


def _check_base(source: Path, base: Path | None) -> None:
    """Raises UserError if one of these is missing, or unless `base` is given for an adapter, and only for one."""
    from scratchlm.formats.peft import ADAPTER_CONFIG

    for path in filter(None, (source, base)):
        if not path.exists():
            raise missing(path)
    is_adapter = (source / ADAPTER_CONFIG).exists()
    if is_adapter and not base:
        raise UserError(f"{source} is an adapter of PEFT; name the folder of its base model with --base")
    if base and not is_adapter:
        raise UserError(f"--base is for an adapter of PEFT, but {source} has no {ADAPTER_CONFIG}; leave --base out")


def _check_folder(folder: Path) -> None:
    """Raises UserError if this is not the folder of a whole model of transformers."""
    from scratchlm.formats.peft import ADAPTER_CONFIG

    if folder.is_file() or (folder / ADAPTER_CONFIG).exists():
        raise UserError(f"{folder} is no folder of a whole model of transformers; name one that save_pretrained wrote")
    if "gpt" in read_json(folder / "config.json"):
        raise UserError(
            f"{folder} is in this project's format already, and commands take it with --model; for another program, "
            "or as a base model, export it with --format huggingface"
        )
