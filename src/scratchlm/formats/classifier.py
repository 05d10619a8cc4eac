"""Classifiers in our own format: like a language model's folder, with a classifier section in config.json."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from scratchlm.data.labelled_texts import MAX_LABELS
from scratchlm.fast.torch_startup import shapes_only
from scratchlm.formats.native import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    assign_tensors,
    first_mistake,
    read_config,
    read_weights,
    save_folder,
)
from scratchlm.model.classifier import GPTClassifier, Position
from scratchlm.model.gpt import GPTModel
from scratchlm.run.errors import UserError
from scratchlm.run.files import damaged, read_json


class ClassifierSettings(BaseModel):
    """The classifier section of config.json. padded_tokens: the length that messages are padded or cut to."""

    model_config = ConfigDict(extra="allow", strict=True)

    classes: Annotated[list[str], Field(min_length=2, max_length=MAX_LABELS)]
    position: Position
    padded_tokens: Annotated[int, Field(ge=1)]


BACKBONE, SAVED_BACKBONE = "backbone.", "trunk."  # the prefixes of its tensors in the model, and in its files


def save_classifier(
    folder: Path, model: GPTClassifier, adapter: dict[str, Tensor] | None = None, *, classes: Sequence[str],
    padded_tokens: int,
) -> None:  # fmt: skip
    """Write a classifier, with the names of its classes and the length that messages are padded or cut to."""
    own = {"classes": list(classes), "position": model.position, "padded_tokens": padded_tokens}
    weights, adapter = (_renamed(tensors, BACKBONE, SAVED_BACKBONE) for tensors in (model.state_dict(), adapter or {}))
    save_folder(folder, weights, {"gpt": model.backbone.config.model_dump(), "classifier": own}, adapter)


def load_classifier(folder: Path) -> tuple[GPTClassifier, ClassifierSettings]:
    """Return the classifier in `folder`, in evaluation mode, and its settings. Errors as load_gpt."""
    own = read_settings(folder)
    with shapes_only():
        model = GPTClassifier(GPTModel(read_config(folder)), len(own.classes), own.position)
    weights = _renamed(read_weights(folder / WEIGHTS_FILE), SAVED_BACKBONE, BACKBONE)
    assign_tensors(model, weights, str(folder))
    return model.eval(), own


def read_settings(folder: Path) -> ClassifierSettings:
    """Return the settings of the classifier in `folder`. Raises UserError if it holds none."""
    config = read_json(folder / CONFIG_FILE)
    if "classifier" not in config:
        raise UserError(f"{folder} does not hold a classifier; name one that finetune_spam made")
    try:
        return ClassifierSettings.model_validate(config["classifier"])
    except ValidationError as error:
        raise damaged(folder / CONFIG_FILE, f"not a classifier of ours ({first_mistake(error)})") from None


def _renamed(tensors: dict[str, Tensor], prefix: str, other: str) -> dict[str, Tensor]:
    return {other + name.removeprefix(prefix) if name.startswith(prefix) else name: t for name, t in tensors.items()}
