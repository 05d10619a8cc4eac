"""Reward models in our own format: like a language model's folder, with a section reward_model in config.json."""

from pathlib import Path

from torch import Tensor

from scratchlm.fast.torch_startup import shapes_only
from scratchlm.formats.native import CONFIG_FILE, WEIGHTS_FILE, assign_tensors, read_config, read_weights, save_folder
from scratchlm.model.gpt import GPTModel
from scratchlm.model.reward import RewardModel
from scratchlm.run.errors import UserError
from scratchlm.run.files import read_json


def save_reward_model(folder: Path, model: RewardModel, adapter: dict[str, Tensor] | None = None) -> None:
    """Write a reward model. adapter: LoRA matrices to save beside the weights."""
    config = {"gpt": model.backbone.config.model_dump(), "reward_model": {"read_at": "last token"}}
    save_folder(folder, model.state_dict(), config, adapter)


def load_reward_model(folder: Path) -> RewardModel:
    """Return the reward model in `folder`, in evaluation mode. Errors as load_gpt."""
    if "reward_model" not in read_json(folder / CONFIG_FILE):
        raise UserError(f"{folder} does not hold a reward model; name one that the stage reward_model made")
    with shapes_only():
        model = RewardModel(GPTModel(read_config(folder)))
    assign_tensors(model, read_weights(folder / WEIGHTS_FILE), str(folder))
    return model.eval()
