"""Classifiers in our own format: like a language model's folder, with a classifier section in config.json."""

from pathlib import Path
from typing import Any

from torch import Tensor

from scratchlm.fast.torch_startup import shapes_only
from scratchlm.formats.native import CONFIG_FILE, assign_tensors, read_config, read_weights, save_folder
from scratchlm.model.classifier import GPTClassifier
from scratchlm.model.gpt import GPTModel
from scratchlm.run.errors import UserError
from scratchlm.run.files import read_json


def save_classifier(
    folder: Path, model: GPTClassifier, adapter: dict[str, Tensor] | None = None, **settings: Any
) -> None:
    """Write a classifier. settings: what its users need to know, such as the padded length."""
    own = {"n_classes": model.head.out_features, "position": model.position, **settings}
    save_folder(folder, model.state_dict(), {"gpt": model.trunk.config.model_dump(), "classifier": own}, adapter)


def load_classifier(folder: Path) -> tuple[GPTClassifier, dict[str, Any]]:
    """Return the classifier in `folder`, in evaluation mode, and its settings. Errors as load_gpt."""
    config = read_json(folder / CONFIG_FILE)
    if "classifier" not in config:
        raise UserError(f"{folder} holds a language model, not a classifier; name one that finetune_spam made")
    own = config["classifier"]
    with shapes_only():
        model = GPTClassifier(GPTModel(read_config(folder)), own["n_classes"], own["position"])
    assign_tensors(model, read_weights(folder), str(folder))
    return model.eval(), own
