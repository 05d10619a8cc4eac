"""Write a model for another program, with its tokenizer, its chat template and its card."""

from contextlib import suppress
from pathlib import Path

from scratchlm.cli.exports import Storage
from scratchlm.cli.models import ASSISTANT, check_vocabulary, refuse_existing, style_of_params
from scratchlm.cli.project import in_project, project_folder
from scratchlm.compare.git import changed_files, git
from scratchlm.data.byte_pairs import BytePairTokenizer
from scratchlm.data.prompts import PromptStyle, chat_template, check_style
from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.formats.classifier import SAVED_BACKBONE, load_classifier, read_settings
from scratchlm.formats.gguf import save_gguf
from scratchlm.formats.huggingface import save_huggingface
from scratchlm.formats.huggingface_classifier import padding_id, save_huggingface_classifier, save_peft_classifier
from scratchlm.formats.modelfile import modelfile
from scratchlm.formats.native import load_gpt, read_config
from scratchlm.formats.peft import check_base, read_adapter, save_peft
from scratchlm.model.gpt import parameter_count
from scratchlm.report.card import Subject, licence, licence_text, model_card
from scratchlm.report.origin import Origin, read_origin
from scratchlm.run.display import say
from scratchlm.run.errors import UserError
from scratchlm.run.files import write_text


def export_classifier(output: Path, model: Path, tokenizer: Path) -> None:
    classifier, settings = load_classifier(model)
    config = classifier.backbone.config
    text = _tokenizer_of(model, config.vocab_size, tokenizer)
    origin = read_origin(model, project_folder())
    subject = Subject(_name(model, origin), config, parameter_count(classifier), settings.classes, False)
    save_huggingface_classifier(output, classifier, settings, text, _card(subject, origin))
    say(f"wrote {output}")


def export_adapter(output: Path, model: Path, tokenizer: Path, is_classifier: bool) -> None:
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


def export_language_model(
    output: Path, model: Path, tokenizer: Path, prompt_style: PromptStyle | None, storage: Storage | None
) -> None:
    """storage: of a GGUF file; None for a folder of Hugging Face."""
    if storage and not output.name.isprintable():
        raise UserError(f"{output.name!r} has characters that a Modelfile cannot name; choose another name")
    recipe = output.with_name(f"{output.name.removesuffix('.gguf')}.Modelfile")
    if storage:
        refuse_existing(recipe)
    gpt = load_gpt(model)
    text = _tokenizer_of(model, gpt.config.vocab_size, tokenizer)
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


def _tokenizer_of(model: Path, n_tokens: int, folder: Path) -> BytePairTokenizer:
    """The tokenizer in a folder. Raises UserError if it is not that of a model of n_tokens, or splits at words."""
    text = load_tokenizer(folder)
    check_vocabulary(model, n_tokens, folder, text.vocab_size)
    if not isinstance(text, BytePairTokenizer):
        raise UserError("only byte-pair tokenizers can be exported; set tokenizer.kind to gpt2 or bpe and rebuild")
    return text


def _name(model: Path, origin: Origin | None) -> str:
    """Of a model of the pipeline, its path in data/models."""
    return origin.steps[0].path.removeprefix("data/models/").replace("/", "-") if origin else model.resolve().name


def _card(subject: Subject, origin: Origin | None) -> str:
    revision, is_changed = None, False
    with suppress(UserError):  # there may be no git, or no commit
        revision = git(project_folder(), "rev-parse", "HEAD")
        is_changed = bool(changed_files(project_folder(), "dvc.lock"))
    return model_card(subject, origin, revision, is_changed)
