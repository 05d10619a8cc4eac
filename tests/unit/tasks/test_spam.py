import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from scratchlm.model.lora import LoRALinear, LoRAParams
from scratchlm.run.errors import UserError
from scratchlm.run.params import check_params
from scratchlm.tasks.spam import (
    FinetuneSpamParams,
    balanced_weights,
    build_spam_classifier,
    padded_texts,
    padded_width,
    spam_task,
)
from scratchlm.training.loop import Task

TOKEN_IDS, LABELS = [[1, 2, 3], [4], [], [5, 6, 7, 8, 9]], [0, 1, 0, 1]


@pytest.fixture(scope="session")
def params(training_values: dict[str, Any]) -> Any:
    values = training_values | {
        "base": "pretrain", "pretrained": True,
        "trainable": "last_block", "position": "last_real", "padding": "longest", "dropout": 0.0,
        "lora": None, "class_weights": None,
    }  # fmt: skip
    return lambda **changes: FinetuneSpamParams(**values | changes)


def trainable(model: torch.nn.Module) -> set[str]:
    """Names of what trains, cut to the part of the model that they are in."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    return {".".join(name.split(".")[:3]) if "blocks" in name else name.split(".")[-2] for name in names}


@pytest.mark.parametrize(
    ("what", "parts"),
    [
        ("head", {"head"}),
        ("last_block", {"head", "final_norm", "backbone.blocks.2"}),
        ("last_two_blocks", {"head", "final_norm", "backbone.blocks.1", "backbone.blocks.2"}),
        (
            "all",
            {"head", "final_norm", "backbone.blocks.0", "backbone.blocks.1", "backbone.blocks.2", "token_embedding",
             "position_embedding"},
        ),
    ],
)  # fmt: skip
def test_only_what_was_asked_for_trains(tiny_gpt: Any, params: Any, what: str, parts: set[str]) -> None:
    classifier = build_spam_classifier(tiny_gpt(n_layers=3), 2, params(trainable=what), 1)
    assert trainable(classifier) == parts


@pytest.mark.parametrize(
    ("layers", "wrapped", "head_trains"),
    [
        ("attention", {"qkv", "projection"}, True),
        ("blocks", {"qkv", "projection", "expansion"}, True),
        ("all", {"qkv", "projection", "expansion", "head"}, False),
    ],
)
def test_with_lora_its_matrices_train_and_the_plain_head_unless_it_has_its_own(
    tiny_gpt: Any, params: Any, layers: str, wrapped: set[str], head_trains: bool
) -> None:
    lora = LoRAParams(rank=2, alpha=2.0, layers=layers)
    classifier = build_spam_classifier(tiny_gpt(), 2, params(lora=lora, trainable="all"), 1)
    found = {path.split(".")[-1] for path, module in classifier.named_modules() if isinstance(module, LoRALinear)}
    assert found == wrapped
    plain = {name for name, p in classifier.named_parameters() if p.requires_grad and name.split(".")[-1] not in "AB"}
    assert plain == ({"head.weight", "head.bias"} if head_trains else set())


def test_the_head_is_fresh_from_the_seed_and_leaves_the_global_stream_alone(tiny_gpt: Any, params: Any) -> None:
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    heads = [build_spam_classifier(tiny_gpt(), 2, params(), seed).head.weight for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(2), expected)
    assert heads[0].shape == (2, 8)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_the_width_is_the_longest_training_message_or_what_was_asked_for_within_the_context() -> None:
    assert padded_width("longest", [[1], [1, 2, 3]], 8) == 3
    assert padded_width("longest", [[1] * 9], 8) == 8
    assert padded_width(5, [[1]], 8) == 5
    assert padded_width(50, [[1]], 8) == 8


def task_of(params: FinetuneSpamParams) -> Task:
    return spam_task(padded_texts(TOKEN_IDS, 0, 4), np.array(LABELS), params, SimpleNamespace(evaluate=dict))  # type: ignore


def test_a_batch_by_hand(params: Any) -> None:
    task = task_of(params())
    batch = task.batch(np.array([3, 0, 2]))
    assert (task.n_examples, batch.n_scored) == (4, 3)
    assert [tensor.tolist() for tensor in batch.tensors] == [
        [[5, 6, 7, 8], [1, 2, 3, 0], [0, 0, 0, 0]],
        [4, 3, 1],
        [1, 0, 0],
    ]
    assert all(tensor.dtype == torch.int64 for tensor in batch.tensors)


def test_the_loss_is_summed_over_messages(tiny_gpt: Any, params: Any) -> None:
    classifier = build_spam_classifier(tiny_gpt(), 2, params(), 1).eval()
    task = task_of(params())
    tensors = task.batch(np.arange(4)).tensors
    loss = task.loss(classifier, *tensors)
    assert loss.item() == pytest.approx(4 * F.cross_entropy(classifier(*tensors[:2]), tensors[2]).item(), rel=1e-6)
    with torch.no_grad():
        classifier.head.weight.zero_()
        classifier.head.bias.copy_(torch.tensor([0.0, math.log(3)]))  # spam is three times as likely
    # two of four are spam
    assert task.loss(classifier, *tensors).item() == pytest.approx(2 * math.log(4) + 2 * math.log(4 / 3))


def test_balanced_weights_are_scikit_learns_and_have_a_mean_of_one() -> None:
    from sklearn.utils.class_weight import compute_sample_weight

    labels = np.array([0, 2, 2, 1, 2, 0, 2, 2])
    weights = balanced_weights(labels, 3)
    assert weights.dtype == torch.float32
    np.testing.assert_allclose(weights, compute_sample_weight("balanced", labels), rtol=1e-6)
    assert weights.mean().item() == pytest.approx(1)
    assert balanced_weights(np.array([0, 1, 1, 0]), 2).tolist() == [1, 1, 1, 1]


def test_each_texts_loss_is_multiplied_by_its_weight(tiny_gpt: Any, params: Any) -> None:
    classifier = build_spam_classifier(tiny_gpt(), 3, params(), 1).eval()
    labels, weights = np.array([0, 1, 2, 2]), torch.tensor([2.0, 0.5, 0.25, 1.0])
    evaluation: Any = SimpleNamespace(evaluate=dict)
    task = spam_task(padded_texts(TOKEN_IDS, 0, 4), labels, params(), evaluation, weights)
    batch = task.batch(np.array([3, 0]))
    assert batch.n_scored == 2 and batch.tensors[-1].tolist() == [1.0, 2.0]
    *tensors, _ = everyone = task.batch(np.arange(4)).tensors
    losses = F.cross_entropy(classifier(*tensors[:2]), tensors[2], reduction="none")
    expected = (losses * weights).sum().item()
    assert task.loss(classifier, *everyone).item() == pytest.approx(expected, rel=1e-6)
    assert task.static_loss
    assert task.static_loss(classifier, *everyone).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"padding": "shortest"}, "padding is 'shortest': must be 'longest' or must be a valid integer"),
        ({"padding": 0}, "padding is 0: must be 'longest' or must be greater than or equal to 1"),
        ({"lora": {"rank": 0, "alpha": 1.0, "layers": "all"}}, "lora.rank is 0: must be greater than or equal to 1"),
        ({"class_weights": "inverse"}, "class_weights is 'inverse': must be 'balanced'"),
        ({"base": ""}, "base is '': must have at least 1 character"),
        (
            {"trainable": "last_blok"},
            "trainable is 'last_blok': must be 'head', 'last_block', 'last_two_blocks' or 'all'",
        ),
    ],
)
def test_settings_that_mean_nothing_are_refused(params: Any, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        check_params(params().model_dump() | change, FinetuneSpamParams, source="params.yaml")
    assert str(caught.value) == f"params.yaml: {sentence}"
