"""Reward models in transformers: folders and adapters of GPT2ForSequenceClassification and the like, with one logit.

transformers reads the last token that differs from pad_token_id, which is the end token's id: so it reads the last
token of a response, whether or not the end token follows, as RewardModel does.
"""

from pathlib import Path

from torch import Tensor

from scratchlm.data.byte_pairs import BytePairTokenizer
from scratchlm.formats.classifier import BACKBONE
from scratchlm.formats.huggingface_classifier import head_tensors, write_with_head
from scratchlm.formats.huggingface_tokenizer import save_huggingface_tokenizer
from scratchlm.formats.names import architecture
from scratchlm.formats.peft import CARD_FILE, read_adapter, write_adapter
from scratchlm.formats.reward import load_reward_model
from scratchlm.model.reward import RewardModel
from scratchlm.run.files import atomic_folder, write_text

LABEL = "reward"
LAST_LINE_END = ("+ '\n'}}{% endfor %}", "+ ('' if loop.last else '\n')}}{% endfor %}")  # of chatml: it would be read


def save_huggingface_reward(
    folder: Path, model: RewardModel, tokenizer: BytePairTokenizer, template: str | None, card: str
) -> None:
    """Write a folder that AutoModelForSequenceClassification and AutoTokenizer load.

    template: for apply_chat_template, of a prompt and its response. card: the folder's README.md.
    Raises UserError if transformers has no such models.
    """
    labels = {"id2label": {"0": LABEL}, "label2id": {LABEL: 0}, "pad_token_id": tokenizer.end_token_id}
    with atomic_folder(folder) as temporary:
        write_with_head(
            temporary, model.backbone, _own_tensors(model), {"problem_type": "regression", **labels}, tokenizer
        )
        _finish(temporary, model, tokenizer, template, card)


def save_peft_reward(
    folder: Path, model: Path, tokenizer: BytePairTokenizer, base: str | None, template: str | None, card: str
) -> None:
    """Write the adapter of a reward model in our format: what LoRA trained, the head, the last norm and the tokenizer.

    base: the name that the adapter gives its base model. template and card: as save_huggingface_reward.
    Raises UserError if the model has no adapter, or if transformers has no such models.
    """
    rating, adapter = load_reward_model(model), read_adapter(model, BACKBONE)
    with atomic_folder(folder) as temporary:
        write_adapter(temporary, adapter, rating.backbone.config, base, _own_tensors(rating))
        _finish(temporary, rating, tokenizer, template, card)


def logit_offset(model: RewardModel) -> float:
    """By how much the logits of transformers exceed our rewards.

    It is 0 for a GPT-2, whose last norm takes the origin. Others have no place for it; no difference of rewards has it.
    """
    return 0.0 if architecture(model.backbone.config) == "gpt2" else model.origin.item()


def _own_tensors(model: RewardModel) -> dict[str, Tensor]:
    return head_tensors(model.backbone, model.head.weight, (logit_offset(model) - model.origin).view(1))


def _finish(folder: Path, model: RewardModel, tokenizer: BytePairTokenizer, template: str | None, card: str) -> None:
    template = template and template.replace(*LAST_LINE_END)
    save_huggingface_tokenizer(folder, tokenizer, model.backbone.config.context_length, template)
    write_text(folder / CARD_FILE, card)
