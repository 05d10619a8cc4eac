"""Commands that write models for other programs and read theirs: export, import."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from scratchlm.cli.models import (
    ASSISTANT,
    TOKENIZER,
    Model,
    Style,
    TokenizerFolder,
    check_vocabulary,
    load_model,
    refuse_existing,
    style_of_params,
)
from scratchlm.cli.project import in_project, project_folder
from scratchlm.compare.git import git
from scratchlm.run.display import say
from scratchlm.run.errors import UserError
from scratchlm.run.files import atomic_folder, missing, read_json, write_text

Storage = Literal["float32", "float16", "q8_0"]

if TYPE_CHECKING:
    from scratchlm.data.byte_pairs import BytePairTokenizer
    from scratchlm.data.tokenizer import Tokenizer
    from scratchlm.report.card import Subject
    from scratchlm.report.origin import Origin


def export(
    output: Annotated[Path, typer.Argument(help="a new folder (huggingface, peft) or file (gguf)")],
    format: Annotated[
        Literal["huggingface", "gguf", "peft"],
        typer.Option(help="for transformers or llama.cpp; peft: only what LoRA trained"),
    ],
    model: Model = ASSISTANT,
    tokenizer: TokenizerFolder = TOKENIZER,
    prompt_style: Style = None,
    storage: Annotated[Storage, typer.Option(help="gguf: of matrices; q8_0 takes 8.5 bits a number")] = "float32",
) -> None:
    """Write a model for transformers, llama.cpp or Ollama.

    The last two take language models only. An assistant gets its chat template, a GGUF file a Modelfile beside it, a
    folder a model card.
    """
    refuse_existing(output)
    if format != "gguf" and storage != "float32":
        raise UserError(f"--storage {storage} is for --format gguf; a folder for transformers holds float32")
    config = read_json(model / "config.json")
    is_classifier = "classifier" in config
    if "reward_model" in config:
        raise UserError(f"{model} holds a reward model, which cannot be exported; name a language model or classifier")
    if prompt_style and (is_classifier or format == "peft"):
        raise UserError("--prompt-style is for the chat template of a language model; leave it out")
    if is_classifier and format == "gguf":
        raise UserError(f"{model} holds a classifier, which gguf has no form of; export it with --format huggingface")
    if format == "peft":
        _export_adapter(output, model, tokenizer, is_classifier)
    elif is_classifier:
        _export_classifier(output, model, tokenizer)
    else:
        _export_language_model(output, model, tokenizer, prompt_style, storage if format == "gguf" else None)


def _export_classifier(output: Path, model: Path, tokenizer: Path) -> None:
    from scratchlm.formats.classifier import load_classifier
    from scratchlm.formats.huggingface_classifier import save_huggingface_classifier
    from scratchlm.model.gpt import parameter_count
    from scratchlm.report.card import Subject
    from scratchlm.report.origin import read_origin

    classifier, settings = load_classifier(model)
    config = classifier.backbone.config
    text = _tokenizer_of(model, config.vocab_size, tokenizer)
    origin = read_origin(model, project_folder())
    subject = Subject(_name(model, origin), config, parameter_count(classifier), settings.classes, False)
    save_huggingface_classifier(output, classifier, settings, text, _card(subject, origin))
    say(f"wrote {output}")


def _export_adapter(output: Path, model: Path, tokenizer: Path, is_classifier: bool) -> None:
    from scratchlm.formats.classifier import SAVED_BACKBONE, read_settings
    from scratchlm.formats.huggingface_classifier import padding_id, save_peft_classifier
    from scratchlm.formats.native import read_config
    from scratchlm.formats.peft import check_base, read_adapter, save_peft
    from scratchlm.report.card import Subject
    from scratchlm.report.origin import read_origin

    prefix = SAVED_BACKBONE if is_classifier else ""
    origin, config, adapter = read_origin(model, project_folder()), read_config(model), read_adapter(model, prefix)
    base = Path(origin.steps[1].path) if origin else None
    if base:
        check_base(model, prefix, project_folder() / base)
    base_name = base.name if base else None
    n_numbers = sum(tensor.numel() for name, tensor in adapter.items() if name != "alpha")
    subject = Subject(_name(model, origin), config, n_numbers, (), False, base_name or "base-model")
    if is_classifier:
        settings, text = read_settings(model), _tokenizer_of(model, config.vocab_size, tokenizer)
        subject = subject._replace(classes=settings.classes, padding_id=padding_id(settings, text))
        save_peft_classifier(output, model, text, base_name, _card(subject, origin))
    else:
        save_peft(output, model, base_name, _card(subject, origin))
    say(f"wrote {output}, for the base model {base or 'that it was trained from'}")


def _export_language_model(
    output: Path, model: Path, tokenizer: Path, prompt_style: Style, storage: Storage | None
) -> None:
    """storage: of a GGUF file; None for a folder of Hugging Face."""
    from scratchlm.data.prompts import chat_template, check_style
    from scratchlm.formats.gguf import save_gguf
    from scratchlm.formats.huggingface import save_huggingface
    from scratchlm.formats.modelfile import modelfile
    from scratchlm.model.gpt import parameter_count
    from scratchlm.report.card import Subject, licence, licence_text
    from scratchlm.report.origin import read_origin

    if storage and not output.name.isprintable():
        raise UserError(f"{output.name!r} has characters that a Modelfile cannot name; choose another name")
    recipe = output.with_name(f"{output.name.removesuffix('.gguf')}.Modelfile")
    if storage:
        refuse_existing(recipe)
    gpt, found = load_model(model, tokenizer)
    text = _byte_pairs(found)
    origin, settings, style = read_origin(model, project_folder()), text.pairs.settings, prompt_style
    is_assistant = origin and any(Path(step.path) == ASSISTANT for step in origin.steps)  # or made from it
    if is_assistant or model.resolve() == in_project(ASSISTANT).resolve():
        style = style or style_of_params()
    template = settings.chat_template
    if style:
        check_style(style, text)
        template = chat_template(style, settings.end_token, settings.begin_token)
    subject = Subject(_name(model, origin), gpt.config, parameter_count(gpt), (), template is not None)
    if storage is None:
        save_huggingface(output, gpt, text, template, _card(subject, origin))
        say(f"wrote {output}")
        return
    general = {"name": subject.name, "description": subject.about}
    if origin:
        general |= {"license": str(licence(origin)), "license.name": licence_text(origin)}
    licences = general.get("license.name")
    write_text(recipe, modelfile(output.name, settings, gpt.config.context_length, style, licences))
    try:
        save_gguf(output, gpt, text, template, storage=storage, general=general)
    except BaseException:
        recipe.unlink()
        raise
    say(f"wrote {output} and {recipe}")


def _tokenizer_of(model: Path, n_tokens: int, folder: Path) -> "BytePairTokenizer":
    """The tokenizer in a folder. Raises UserError if it is not that of a model of n_tokens."""
    from scratchlm.data.tokenizer import load_tokenizer

    text = load_tokenizer(folder)
    check_vocabulary(model, n_tokens, folder, text.vocab_size)
    return _byte_pairs(text)


def _byte_pairs(tokenizer: "Tokenizer") -> "BytePairTokenizer":
    from scratchlm.data.byte_pairs import BytePairTokenizer

    if not isinstance(tokenizer, BytePairTokenizer):
        raise UserError("only byte-pair tokenizers can be exported; set tokenizer.kind to gpt2 or bpe and rebuild")
    return tokenizer


def _name(model: Path, origin: "Origin | None") -> str:
    """Of a model of the pipeline, its path in data/models."""
    return origin.steps[0].path.removeprefix("data/models/").replace("/", "-") if origin else model.resolve().name


def _card(subject: "Subject", origin: "Origin | None") -> str:
    from scratchlm.report.card import model_card

    revision, is_changed = None, False
    with suppress(UserError):  # there may be no git, or no commit
        revision = git(project_folder(), "rev-parse", "HEAD")
        is_changed = git(project_folder(), "status", "--porcelain", "--", "dvc.lock") != ""
    return model_card(subject, origin, revision, is_changed)


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
