import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from scratchlm.run.errors import UserError
from scratchlm.run.params import check_params, load_yaml
from scratchlm.tasks.preflight import check_together
from stages.preflight import Params

REPOSITORY = Path(__file__).resolve().parents[3]
SAMPLE = load_yaml(REPOSITORY / "profiles" / "sample.yaml")


def check(changes: dict[str, Any]) -> None:
    """Check the sample's parameters with `changes`: dotted key to value."""
    values = copy.deepcopy(SAMPLE)
    for key, value in changes.items():
        *sections, name = key.split(".")
        section = values
        for part in sections:
            section = section[part]
        section[name] = value
    check_together(check_params(values, Params, source="params.yaml", whole=True))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"device": "auto"},
        {"gpt2_sizes": [], "finetune_spam.base": "pretrain", "finetune_instruct.base": "pretrain"},
        {"tokenizer": {"kind": "word"}, "gpt2_sizes": [], "finetune_spam.base": "pretrain",
         "finetune_instruct.base": "pretrain"},
        {"gpt2_sizes": ["124M", "355M"], "sources.vocabulary": "gpt2-124M", "finetune_spam.base": "gpt2-124M",
         "finetune_instruct.base": "gpt2-355M", "generate.max_new_tokens": 1024, "finetune_spam.padding": 1024},
        {"evaluation.context_length": 256, "finetune_spam.padding": 256, "generate.max_new_tokens": 256},
        {"model.size": "custom", "model.custom": {"n_layers": 2, "n_heads": 3, "emb_dim": 6}},
    ],
)  # fmt: skip
def test_what_fits_together_passes(changes: dict[str, Any]) -> None:
    check(changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"model.size": "custom", "model.custom": {"n_layers": 2, "n_heads": 5, "emb_dim": 64}},
            "params.yaml: model.custom emb_dim 64 cannot be split over 5 heads; choose n_heads among the divisors "
            "of emb_dim",
        ),
        (
            {"model.size": "custom"},
            "params.yaml: model size: custom needs a section custom: {n_layers, n_heads, emb_dim}, and only it does",
        ),
        (
            {"finetune_spam.base": "gpt2-124M"},
            "finetune_spam.base is 'gpt2-124M'; allowed are pretrain, gpt2-nano; to use another GPT-2, "
            "add its size to gpt2_sizes",
        ),
        (
            {"finetune_instruct.base": "gpt2"},
            "finetune_instruct.base is 'gpt2'; allowed are pretrain, gpt2-nano; to use another GPT-2, "
            "add its size to gpt2_sizes",
        ),
        (
            {"tokenizer": {"kind": "bpe", "vocab_size": 1024}},
            "gpt2_sizes has nano, whose vocabulary of 1024 tokens differs from the tokenizer's "
            "(bpe: trained on the corpus); set tokenizer.kind to gpt2 and sources.vocabulary to gpt2-nano, "
            "or remove the size",
        ),
        (
            {"sources.vocabulary": "gpt2-124M"},
            "gpt2_sizes has nano, whose vocabulary of 1024 tokens differs from the tokenizer's (gpt2: gpt2-124M); "
            "set tokenizer.kind to gpt2 and sources.vocabulary to gpt2-nano, or remove the size",
        ),
        (
            {"gpt2_sizes": ["nano", "355M"]},
            "gpt2_sizes has 355M, whose vocabulary of 50257 tokens differs from the tokenizer's (gpt2: gpt2-nano); "
            "set tokenizer.kind to gpt2 and sources.vocabulary to gpt2-124M, or remove the size",
        ),
        (
            {"evaluation.context_length": 257, "model.context_length": 512},
            "evaluation.context_length is 257, but gpt2-nano has a context of 256 tokens; lower it to that or less",
        ),
        (
            {"model.context_length": 100},
            "evaluation.context_length is 128, but pretrain has a context of 100 tokens; lower it to that or less",
        ),
        (
            {"finetune_spam.padding": 257},
            "finetune_spam.padding is 257, but gpt2-nano has a context of 256 tokens; lower it to that or less",
        ),
        (
            {"generate.max_new_tokens": 257},
            "generate.max_new_tokens is 257, but gpt2-nano has a context of 256 tokens; lower it to that or less",
        ),
        (
            {"generate.max_new_tokens": 200, "finetune_instruct.base": "pretrain", "model.context_length": 128},
            "generate.max_new_tokens is 200, but pretrain has a context of 128 tokens; lower it to that or less",
        ),
    ],
)
def test_what_does_not_fit_together_is_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        check(changes)
    assert str(caught.value) == sentence


def test_every_mismatch_is_named_at_once() -> None:
    with pytest.raises(UserError) as caught:
        check({"finetune_spam.base": "x", "finetune_instruct.base": "y", "evaluation.context_length": 300})
    keys = [line.split()[0] for line in str(caught.value).split("\n")]
    assert keys == ["finetune_spam.base", "finetune_instruct.base", "evaluation.context_length",
                    "evaluation.context_length"]  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_cuda_where_there_is_none_is_refused_before_any_work() -> None:
    with pytest.raises(UserError, match=r"device is 'cuda', but torch finds only .*cpu here; set device to one of"):
        check({"device": "cuda"})


@pytest.mark.parametrize("profile", sorted((REPOSITORY / "profiles").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_profile_fits_together(profile: Path) -> None:
    values = load_yaml(profile) | {"device": "cpu"}
    check_together(check_params(values, Params, source=profile.name, whole=True))
