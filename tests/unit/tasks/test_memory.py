"""What reinforcement learning holds at once, by hand and against the storages of its sampling."""

from typing import Any

import pytest

from scratchlm.fast.decoding import for_inference
from scratchlm.model.config import GPTConfig, published_config
from scratchlm.model.generate import SamplingParams, Stopping, generate
from scratchlm.model.gpt import build_model
from scratchlm.run.params import with_changes
from scratchlm.tasks.memory import Training, shortage
from scratchlm.tasks.reinforce import ReinforceParams
from scratchlm.training.memory import rollout_bytes
from tests.unit.benchmarks.test_memory_formula import GPT2, Existing
from tests.unit.tasks.test_preflight import SAMPLE

NANO = published_config("nano")
WEIGHTS = 4 * 758_912
# Of 8 x 8 responses: in 32 slots a key and a value of 128 numbers in each of 3 layers, two bytes each, and 1,024 logits
SAMPLED = 64 * (32 * 2 * 3 * 128 * 2 + 1024 * (2 + 4 + 8 + 8))
SAMPLED_ON_A_CARD = 64 * (32 * 2 * 3 * 128 * 2 + 1024 * 4)


def training(has_reward_model: bool = False, **changes: Any) -> Training:
    params = with_changes(ReinforceParams(**SAMPLE["reinforce"]), {"run": changes}, "reinforce_runs", "run")
    return Training("reinforce_runs.run", "gpt2-nano", NANO, params, 1, not params.lora, has_reward_model)


@pytest.mark.parametrize(
    ("given", "device", "n_bytes"),
    [
        (training(), "cpu", 4 * WEIGHTS + SAMPLED),  # policy and assistant, two moments
        (training(), "cuda", 4 * WEIGHTS + SAMPLED_ON_A_CARD),
        (training(batch_size=1), "cpu", 5 * WEIGHTS),  # more than to sample: the gradients of an update
        (training(max_micro_batch_size=1), "cuda", 4 * WEIGHTS + SAMPLED_ON_A_CARD),  # samples all at once
        (training(max_micro_batch_size=1), "cpu", 5 * WEIGHTS),  # samples one at a time
        (training(has_reward_model=True), "cpu", 5 * WEIGHTS + SAMPLED),
        (training(lora={"rank": 8, "alpha": 8.0, "layers": "blocks"}), "cpu", 2 * WEIGHTS + SAMPLED),
        (
            training(batch_size=16, max_micro_batch_size=128, max_new_tokens=1), "cpu",
            4 * WEIGHTS + 128 * (2 * 3 * 128 * 2 + 1024 * 22),
        ),
    ],
)  # fmt: skip
def test_policy_assistant_and_the_sampled_batch_exist_at_once(given: Training, device: str, n_bytes: int) -> None:
    assert given.needed_bytes(device, compile_=False) == n_bytes


def test_a_run_that_samples_too_much_is_told_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    given = training(batch_size=4096, max_micro_batch_size=8 * 4096)
    needed = given.needed_bytes("cpu", compile_=False)
    monkeypatch.setattr("scratchlm.tasks.memory.memory_bytes", lambda device: needed)
    assert not [*shortage(given, "cpu", compile_=False)]
    monkeypatch.setattr("scratchlm.tasks.memory.memory_bytes", lambda device: needed - 1)
    (sentence,) = shortage(given, "cpu", compile_=False)
    assert sentence == (
        "reinforce_runs.run of gpt2-nano (758,912 parameters) needs at least 2.2 GiB of memory, but cpu has 2.1; lower "
        "the model's size, batch_size, responses_per_prompt or max_micro_batch_size, or set checkpoint_activations"
    )


def test_the_formula_is_a_little_less_than_the_storages_that_sampling_makes() -> None:
    config = GPTConfig(**GPT2 | {"n_layers": 1, "emb_dim": 64})
    decoder, existing = for_inference(build_model(config, 1)), Existing()
    sampling = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0)
    with existing:
        generate(decoder, [[1, 2]] * 8, Stopping(3, None), sampling, seeds=range(8))
    formula = rollout_bytes(config, 8, 3, "cpu")
    assert 0.75 * existing.most < formula < existing.most
