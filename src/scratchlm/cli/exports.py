"""The command that writes models for other programs."""

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
from scratchlm.run.display import say
from scratchlm.run.errors import UserError
from scratchlm.run.files import read_json, write_text

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

    The last two take language models only. Assistants and reward models get their chat template, a GGUF file a
    Modelfile beside it, a folder a model card.
    """
    from scratchlm.formats.native import OTHER_KINDS

    refuse_existing(output)
    if format != "gguf" and storage != "float32":
        raise UserError(f"--storage {storage} is for --format gguf; a folder for transformers holds float32")
    config = read_json(model / "config.json")
    kind = next((kind for section, kind in OTHER_KINDS.items() if section in config), "language model")
    if prompt_style and (kind == "classifier" or format == "peft"):
        raise UserError("--prompt-style is for the chat template of a language model or reward model; leave it out")
    if kind != "language model" and format == "gguf":
        raise UserError(f"{model} holds a {kind}, which gguf has no form of; export it with --format huggingface")
    if format == "peft":
        _export_adapter(output, model, tokenizer, kind)
    elif kind == "classifier":
        _export_classifier(output, model, tokenizer)
    elif kind == "reward model":
        _export_reward_model(output, model, tokenizer, prompt_style)
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


def _export_reward_model(output: Path, model: Path, tokenizer: Path, prompt_style: Style) -> None:
    from scratchlm.formats.huggingface_reward import logit_offset, save_huggingface_reward
    from scratchlm.formats.reward import load_reward_model
    from scratchlm.model.gpt import parameter_count
    from scratchlm.report.card import Subject
    from scratchlm.report.origin import read_origin

    rating = load_reward_model(model)
    config, offset = rating.backbone.config, logit_offset(rating)
    text, origin = _tokenizer_of(model, config.vocab_size, tokenizer), read_origin(model, project_folder())
    template = _template(_style(model, origin, prompt_style, text), text)
    name, n_parameters = _name(model, origin), parameter_count(rating)
    subject = Subject(name, config, n_parameters, (), template is not None, logit_offset=offset)
    save_huggingface_reward(output, rating, text, template, _card(subject, origin))
    say(f"wrote {output}")


def _export_adapter(output: Path, model: Path, tokenizer: Path, kind: str) -> None:
    """kind: as in OTHER_KINDS, or a language model."""
    from scratchlm.formats.classifier import BACKBONE, SAVED_BACKBONE, read_settings
    from scratchlm.formats.huggingface_classifier import padding_id, save_peft_classifier
    from scratchlm.formats.huggingface_reward import logit_offset, save_peft_reward
    from scratchlm.formats.native import read_config
    from scratchlm.formats.peft import check_base, read_adapter, save_peft
    from scratchlm.formats.reward import load_reward_model
    from scratchlm.report.card import Subject
    from scratchlm.report.origin import read_origin

    prefix = {"classifier": SAVED_BACKBONE, "reward model": BACKBONE}.get(kind, "")
    origin, config, adapter = read_origin(model, project_folder()), read_config(model), read_adapter(model, prefix)
    base = Path(origin.steps[1].path) if origin else None
    if base:
        check_base(model, prefix, project_folder() / base)
    base_name = base.name if base else None
    n_numbers = sum(tensor.numel() for name, tensor in adapter.items() if name != "alpha")
    subject = Subject(_name(model, origin), config, n_numbers, (), False, base_name or "base-model")
    if kind == "language model":
        save_peft(output, model, base_name, _card(subject, origin))
    elif kind == "classifier":
        settings, text = read_settings(model), _tokenizer_of(model, config.vocab_size, tokenizer)
        subject = subject._replace(classes=settings.classes, padding_id=padding_id(settings, text))
        save_peft_classifier(output, model, text, base_name, _card(subject, origin))
    else:
        text, offset = _tokenizer_of(model, config.vocab_size, tokenizer), logit_offset(load_reward_model(model))
        template = _template(_style(model, origin, None, text), text)
        subject = subject._replace(is_chat=template is not None, padding_id=text.end_token_id, logit_offset=offset)
        save_peft_reward(output, model, text, base_name, template, _card(subject, origin))
    say(f"wrote {output}, for the base model {base or 'that it was trained from'}")


def _export_language_model(
    output: Path, model: Path, tokenizer: Path, prompt_style: Style, storage: Storage | None
) -> None:
    """storage: of a GGUF file; None for a folder of Hugging Face."""
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
    text, origin = _byte_pairs(found), read_origin(model, project_folder())
    settings, style = text.pairs.settings, _style(model, origin, prompt_style, text)
    template = _template(style, text) or settings.chat_template
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


def _style(model: Path, origin: "Origin | None", given: Style, text: "BytePairTokenizer") -> Style:
    """The given style, else that of params.yaml for the assistant and what was made from it, else None.

    Raises UserError if the tokenizer lacks its markers.
    """
    from scratchlm.data.prompts import check_style

    is_assistant = origin and any(Path(step.path) == ASSISTANT for step in origin.steps)  # or made from it
    if is_assistant or model.resolve() == in_project(ASSISTANT).resolve():
        given = given or style_of_params()
    if given:
        check_style(given, text)
    return given


def _template(style: Style, text: "BytePairTokenizer") -> str | None:
    from scratchlm.data.prompts import chat_template

    settings = text.pairs.settings
    return chat_template(style, settings.end_token, settings.begin_token) if style else None


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
    from scratchlm.compare.git import git
    from scratchlm.report.card import model_card

    revision, is_changed = None, False
    with suppress(UserError):  # there may be no git, or no commit
        revision = git(project_folder(), "rev-parse", "HEAD")
        is_changed = git(project_folder(), "status", "--porcelain", "--", "dvc.lock") != ""
    return model_card(subject, origin, revision, is_changed)
