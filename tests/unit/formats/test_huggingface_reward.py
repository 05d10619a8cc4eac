"""Reward models in transformers and PEFT: the rewards of ours."""

from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from scratchlm.cli.exports import export
from scratchlm.cli.imports import import_model
from scratchlm.data.byte_pairs import BytePairTokenizer, save_byte_pairs, train_byte_pairs
from scratchlm.data.prompts import encode_prompt
from scratchlm.formats.huggingface import save_huggingface
from scratchlm.formats.reward import load_reward_model, save_reward_model
from scratchlm.model.config import GPTConfig
from scratchlm.model.gpt import GPTModel, build_model
from scratchlm.model.lora import LoRAParams, apply_lora, merge_lora
from scratchlm.model.reward import RewardModel
from scratchlm.run.errors import UserError
from scratchlm.training.reward import rewards
from tests import smollm
from tests.perturbed import perturbed

GPT2 = {"position": "learned", "norm": "layer", "feed_forward": "gelu", "qkv_bias": True, "bias": True}
LLAMA = {"position": "rope", "norm": "rms", "feed_forward": "swiglu", "qkv_bias": False, "bias": False, "n_kv_heads": 2}
KINDS = {"alpaca": GPT2, "chatml": LLAMA}  # by the prompt style of each case
ORIGIN = 0.7
TASKS = ["Say it with not.", "Write the opposite of hot."]
RESPONSES = ["The lamp is not hot.", "c"]


def tokenizer(style: str) -> BytePairTokenizer:
    pairs = smollm.tiny_pairs() if style == "chatml" else train_byte_pairs([smollm.TEXT], 300)
    return BytePairTokenizer(*pairs)


def assistant(style: str) -> GPTModel:
    shape = {"n_layers": 2, "n_heads": 4, "emb_dim": 32, "vocab_size": tokenizer(style).vocab_size, "dropout": 0.0}
    rest = {"context_length": 256, "initialisation": "gpt2", "attention": "sdpa", "tied_head": True}
    return perturbed(build_model(GPTConfig(**shape, **rest, **KINDS[style]), seed=1), 0.1)


def save(folder: Path, style: str, lora: LoRAParams | None) -> None:
    """Write a reward model and its tokenizer, as if it were trained, and its base model for transformers."""
    text, base = tokenizer(style), assistant(style)
    save_huggingface(folder / "base", base, text)
    save_byte_pairs(folder / "tokenizer", *text.pairs)
    model = RewardModel(base)
    apply_lora(model, lora, 2, model.head)
    source = torch.Generator().manual_seed(3)
    for parameter in filter(attrgetter("requires_grad"), model.parameters()):
        nn.init.normal_(parameter, std=0.2, generator=source)
    model.origin.fill_(ORIGIN)
    save_reward_model(folder / "model", model, merge_lora(model))


def chats() -> list[list[dict[str, str]]]:
    return [
        [{"role": "user", "content": task}, {"role": "assistant", "content": response}]
        for task, response in zip(TASKS, RESPONSES, strict=True)
    ]


def expected(folder: Path, style: Any) -> torch.Tensor:
    text = tokenizer(style)
    prompts = [encode_prompt({"instruction": task, "input": ""}, style, text) for task in TASKS]
    sequences = [[*prompt, *text.encode(said)] for prompt, said in zip(prompts, RESPONSES, strict=True)]
    return rewards(load_reward_model(folder / "model"), sequences)


@torch.no_grad()
def logits(model: nn.Module, inputs: Any) -> torch.Tensor:
    return model(**inputs).logits.squeeze(-1).double()


@pytest.mark.parametrize("style", KINDS)
def test_transformers_gives_our_rewards_to_chats_with_any_padding(style: Any, tmp_path: Path) -> None:
    save(tmp_path, style, None)
    export(tmp_path / "out", "huggingface", tmp_path / "model", tmp_path / "tokenizer", style)
    ours = expected(tmp_path, style)
    assert (ours[0] - ours[1]).abs() > 0.01
    offset = ORIGIN if KINDS[style] is LLAMA else 0.0  # Llama's norm has no place for the origin
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    words = AutoTokenizer.from_pretrained(tmp_path / "out")
    batch = words.apply_chat_template(chats(), padding=True, return_dict=True, return_tensors="pt")
    torch.testing.assert_close(logits(model, batch) - offset, ours, atol=1e-5, rtol=0)
    text = words.apply_chat_template(chats()[0], tokenize=False)
    assert text.endswith(RESPONSES[0] + words.eos_token)  # a newline behind it would be read
    for said in (text, text.removesuffix(words.eos_token), text + words.eos_token):
        alone = logits(model, words(said, add_special_tokens=False, return_tensors="pt"))
    torch.testing.assert_close(alone - offset, ours[:1], atol=1e-5, rtol=0)
    rated = pipeline("text-classification", model=model, tokenizer=words)(text, add_special_tokens=False)
    assert rated == [{"label": "reward", "score": pytest.approx(ours[0].item() + offset, abs=1e-5)}]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "A reward model, built like" in card and "apply_chat_template(chat, return_dict=True" in card
    assert ("Subtract 0.7 from it for the reward" in card) == (offset != 0)


@pytest.mark.parametrize(("style", "layers"), [("alpaca", "all"), ("chatml", "attention")])
def test_peft_makes_the_same_reward_model_of_the_assistant(style: Any, layers: Any, tmp_path: Path) -> None:
    save(tmp_path, style, LoRAParams(rank=3, alpha=0.7, layers=layers))
    export(tmp_path / "out", "peft", tmp_path / "model", tmp_path / "tokenizer")
    padding = tokenizer(style).end_token_id
    assert f'("base-model", num_labels=1, pad_token_id={padding})' in (tmp_path / "out" / "README.md").read_text()
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1, pad_token_id=padding)
    model, words = (
        PeftModel.from_pretrained(base, tmp_path / "out").eval(),
        AutoTokenizer.from_pretrained(tmp_path / "out"),
    )
    text, ours = tokenizer(style), expected(tmp_path, style)
    prompt = encode_prompt({"instruction": TASKS[0], "input": ""}, style, text)
    token_ids = torch.tensor([[*prompt, *text.encode(RESPONSES[0]), text.end_token_id]])
    offset = ORIGIN if KINDS[style] is LLAMA else 0.0
    torch.testing.assert_close(logits(model, {"input_ids": token_ids}) - offset, ours[:1], atol=1e-5, rtol=0)
    assert words.pad_token_id == padding


def test_a_reward_model_is_no_gguf_and_is_not_imported_again(tmp_path: Path) -> None:
    save(tmp_path, "alpaca", None)
    with pytest.raises(UserError, match="holds a reward model, which gguf has no form of; export it with --format"):
        export(tmp_path / "out.gguf", "gguf", tmp_path / "model", tmp_path / "tokenizer")
    with pytest.raises(UserError, match=r"model has no adapter.safetensors: it was not trained with lora"):
        export(tmp_path / "out", "peft", tmp_path / "model", tmp_path / "tokenizer")
    export(tmp_path / "out", "huggingface", tmp_path / "model", tmp_path / "tokenizer")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template is None
    with pytest.raises(UserError, match="problem_type is 'regression'; only single_label_classification can be read"):
        import_model(tmp_path / "out", tmp_path / "again", None)
