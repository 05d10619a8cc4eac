from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from scratchlm.data.byte_pairs import END_OF_TEXT
from scratchlm.data.tokenizer import UNKNOWN, WordTokenizer
from scratchlm.model.generate import Stopping, generate
from scratchlm.model.gpt import GPTModel
from scratchlm.tasks.generation import N_SAMPLES
from scratchlm.tasks.instruct import SAMPLE_TOKENS, Instructions, ResponseEvaluation, mean_losses
from scratchlm.tasks.settings import EvaluationParams

Build = Callable[..., GPTModel]

WORDS = WordTokenizer([*"abcdefghi", END_OF_TEXT, UNKNOWN])
CONTEXT_LENGTH = 8


def rows(n: int) -> list[dict[str, Any]]:
    source = np.random.default_rng(n)
    return [
        {
            "id": f"task-{i:05d}",
            "instruction": f"do {i}",
            "input": "x",
            "output": "a",
            "prompt_token_ids": source.integers(9, size=source.integers(1, 6)).tolist(),
            "response_token_ids": source.integers(9, size=source.integers(1, 6)).tolist(),
        }
        for i in range(n)
    ]


SPLITS = {"train": rows(9), "val": rows(5), "test": rows(4)}


def evaluation(max_rows: int = 2, batch_size: int = 3, splits: Any = None) -> ResponseEvaluation:
    params = EvaluationParams(context_length=CONTEXT_LENGTH, batch_size=batch_size, max_rows=max_rows)
    return ResponseEvaluation(Instructions(splits or SPLITS, WORDS, CONTEXT_LENGTH), params)


def loss_by_hand(model: GPTModel, chosen: list[dict[str, Any]]) -> float:
    """Each response token and the end token given all before it, as far as the context reaches, one row at a time."""
    losses = []
    for row in chosen:
        sequence = [*row["prompt_token_ids"], *row["response_token_ids"], WORDS.end_token_id][: CONTEXT_LENGTH + 1]
        with torch.no_grad():
            logits = model.eval()(torch.tensor([sequence[:-1]]))[0]
        for place in range(len(row["prompt_token_ids"]), len(sequence)):
            losses.append(F.cross_entropy(logits[place - 1], torch.tensor(sequence[place])).item())
    return sum(losses) / len(losses)


def test_full_metrics_are_the_loss_per_response_token_of_every_split(tiny_gpt: Build) -> None:
    model = tiny_gpt()
    metrics = mean_losses(evaluation().full(model))
    assert set(metrics) == {"train_loss", "val_loss", "test_loss"}
    for split, chosen in SPLITS.items():
        assert metrics[f"{split}_loss"] == pytest.approx(loss_by_hand(model, chosen), rel=1e-5)


def test_the_batch_size_does_not_change_the_loss(tiny_gpt: Build) -> None:
    model = tiny_gpt()
    one, nine = (mean_losses(evaluation(batch_size=n).full(model)) for n in (1, 9))
    assert one == pytest.approx(nine, abs=1e-6)


def test_a_test_response_keeps_its_id_as_long_as_the_task_and_its_answer_are_the_same() -> None:
    def ids(**changes: Any) -> list[str]:
        short = {"prompt_token_ids": [1, 2, 3], "response_token_ids": [4, 5]}
        return evaluation(splits={"test": [row | short | changes for row in rows(4)]}).test_ids()

    assert [name.rpartition("-")[0] for name in ids()] == [row["id"] for row in rows(4)]
    assert ids(prompt_token_ids=[6, 2]) == ids()  # another style of prompt
    cut_by_the_context = {"prompt_token_ids": [1] * 7}
    for change in ({"instruction": "other"}, {"input": "other"}, {"response_token_ids": [4]}, cut_by_the_context):
        assert not set(ids(**change)) & set(ids()), change


def test_metrics_during_training_are_of_the_same_few_rows(tiny_gpt: Build) -> None:
    model, measured = tiny_gpt(), evaluation()
    metrics = measured.evaluate(model)
    assert metrics == pytest.approx(
        {
            "train_loss": loss_by_hand(model, [SPLITS["train"][0], SPLITS["train"][8]]),
            "val_loss": loss_by_hand(model, [SPLITS["val"][0], SPLITS["val"][4]]),
        },
        rel=1e-5,
    )
    assert measured.evaluate(model) == metrics


def test_a_sample_holds_responses_to_the_first_instructions(tiny_gpt: Build) -> None:
    model, measured = tiny_gpt(), evaluation()
    sample = measured.sample(model)
    assert measured.sample(model) == sample
    assert [response["id"] for response in sample["responses"]] == ["task-00000", "task-00001", "task-00002"]
    assert len(sample["responses"]) == N_SAMPLES
    prompts = [row["prompt_token_ids"] for row in SPLITS["val"][:N_SAMPLES]]
    expected = generate(model, prompts, Stopping(SAMPLE_TOKENS, WORDS.end_token_id))
    for response, answer in zip(sample["responses"], expected, strict=True):
        assert response["response"] == WORDS.decode(answer.token_ids).strip()


def test_measuring_draws_nothing_and_leaves_the_mode(tiny_gpt: Build) -> None:
    model = tiny_gpt(dropout=0.5).train()
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    evaluation().evaluate(model)
    evaluation().sample(model)
    evaluation().full(model)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.training
