from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from scratchlm.arithmetic.mode import exact_arithmetic
from scratchlm.data.byte_pairs import END_OF_TEXT
from scratchlm.data.tokenizer import IGNORE_INDEX, UNKNOWN, WordTokenizer
from scratchlm.model.critic import ActorCritic, actor_of
from scratchlm.model.generate import Generation
from scratchlm.model.lora import LoRAParams, adapter_state, apply_lora
from scratchlm.run.context import Run
from scratchlm.run.errors import UserError
from scratchlm.run.params import with_changes
from scratchlm.run.resume import Checkpoint
from scratchlm.tasks.generation import Rows
from scratchlm.tasks.policy_evaluation import PolicyEvaluation, Prompts, reward_metrics
from scratchlm.tasks.reinforce import ReinforceParams, ReinforceRun, reinforce_task
from scratchlm.tasks.rollouts import Measured, collated, grpo_rollout, measure, ppo_rollout
from scratchlm.tasks.settings import EvaluationParams
from scratchlm.training.loop import Training, train

EVALUATION = EvaluationParams(context_length=8, batch_size=4, max_rows=4)
WORDS = WordTokenizer([END_OF_TEXT, UNKNOWN, *(f"w{i}" for i in range(2, 11))])
VALUES = {
    "algorithm": "grpo", "responses_per_prompt": 4, "temperature": 1.0, "max_new_tokens": 3, "unfinished_reward": 0.0,
    "kl_coefficient": 0.05, "clip": 0.2, "updates_per_step": 2, "discount": 1.0, "gae_decay": 0.95,
    "value_coefficient": 0.5, "lora": None, "max_micro_batch_size": 5,
}  # fmt: skip


def prompts_of(n: int) -> list[dict[str, Any]]:
    return [
        {"id": f"pair-{i}", "instruction": f"{i}", "input": "", "chosen": "w9", "rejected": "w3",
         "prompt_token_ids": [2 + i % 7, 3][: 1 + i % 2]}
        for i in range(n)
    ]  # fmt: skip


def nines(rows: Rows, answers: Sequence[Generation]) -> list[float]:
    """The share of the token 9 in a response."""
    return [answer.token_ids.count(9) / max(1, len(answer.token_ids)) for answer in answers]


@pytest.fixture(scope="session")
def params(training_values: dict[str, Any]) -> Any:
    return lambda **changes: ReinforceParams(**training_values | VALUES | changes)


def trained(policy: Any, assistant: Any, p: ReinforceParams, run: Run) -> tuple[Training, PolicyEvaluation]:
    splits = {"train": prompts_of(8), "val": prompts_of(3), "test": prompts_of(5)}
    prompts = Prompts(splits, WORDS, 8, p.max_new_tokens)
    evaluation = PolicyEvaluation(prompts, nines, EVALUATION)
    return train(policy, reinforce_task(prompts, p, nines, evaluation, assistant), run), evaluation


def twins(tiny_gpt: Any, algorithm: str) -> tuple[Any, Any]:
    """A policy to train and the assistant that it starts from."""
    gpt, assistant = tiny_gpt(), tiny_gpt()
    assistant.load_state_dict(gpt.state_dict())
    return (ActorCritic(gpt) if algorithm == "ppo" else gpt), assistant


ALGORITHMS = pytest.mark.parametrize("algorithm", ["grpo", "ppo"])


@pytest.mark.long
@ALGORITHMS
@pytest.mark.parametrize("lora", [None, LoRAParams(rank=2, alpha=2.0, layers="all")])
def test_the_policy_learns_what_is_rewarded(tiny_gpt: Any, params: Any, algorithm: str, lora: Any) -> None:
    policy, assistant = twins(tiny_gpt, algorithm)
    if lora:
        apply_lora(actor_of(policy), lora, 3)
    p = params(algorithm=algorithm, lora=lora, epochs=15, learning_rate=0.02, kl_coefficient=0.001)
    training, evaluation = trained(policy, assistant, p, Run(seed=3))
    first, last = training.steps[0], training.steps[-1]
    assert last["reward"] > first["reward"] + 0.6
    assert last["entropy"] < first["entropy"]
    assert first["kl"] == 0 < last["kl"]
    assert [row["step"] for row in training.steps] == [*range(1, len(training.steps) + 1)]
    assert any(row["clipped"] > 0 for row in training.steps)
    assert bool(adapter_state(policy)) == bool(lora)
    found = reward_metrics(evaluation.records(assistant, actor_of(policy), "test"), seed=3)
    assert found["gain"] == pytest.approx(found["reward"] - found["reward_before"])
    assert found["gain_low"] > 0
    assert training.curve[-1]["val_reward"] > training.curve[0]["val_reward"]


@pytest.mark.long
@ALGORITHMS
def test_a_resumed_training_ends_with_the_same_bits(
    tiny_gpt: Any, params: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    monkeypatch.setenv("SCRATCHLM_RESUME_SECONDS", "0")
    monkeypatch.setattr("scratchlm.run.resume.PAUSE_PER_COST", 0)
    p = params(algorithm=algorithm, epochs=4)
    whole, assistant = twins(tiny_gpt, algorithm)
    initial = {name: value.clone() for name, value in whole.state_dict().items()}
    expected, _ = trained(whole, assistant, p, Run(seed=3))
    n_steps, reward_of = 0, nines

    def interrupt(rows: Rows, answers: Sequence[Generation]) -> list[float]:
        nonlocal n_steps
        n_steps += len(rows) == p.batch_size * p.responses_per_prompt
        if n_steps == 3:
            raise KeyboardInterrupt
        return reward_of(rows, answers)

    for reward in (interrupt, reward_of):
        monkeypatch.setattr(f"{__name__}.nines", reward)
        model, _ = twins(tiny_gpt, algorithm)
        model.load_state_dict(initial)
        run = Run(seed=3, checkpoint=Checkpoint(tmp_path, "f" * 64))
        if reward is interrupt:
            with pytest.raises(KeyboardInterrupt):
                trained(model, assistant, p, run)
        else:
            found, _ = trained(model, assistant, p, run)
    assert run.checkpoint.position != "step 0"
    assert found == expected
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in whole.state_dict().items())


@ALGORITHMS
def test_micro_batches_change_no_bit_in_the_exact_arithmetic(tiny_gpt: Any, params: Any, algorithm: str) -> None:
    initial = tiny_gpt().state_dict()
    found = []
    with exact_arithmetic():
        for size in (8, 3):
            policy, assistant = twins(tiny_gpt, algorithm)
            for model in (actor_of(policy), assistant):
                model.load_state_dict(initial)
            training, _ = trained(
                policy, assistant, params(algorithm=algorithm, max_micro_batch_size=size), Run(seed=3)
            )
            found.append((training, policy.state_dict()))
    (one, weights), (other, others) = found
    assert one == other
    assert all(torch.equal(value, others[name]) for name, value in weights.items())


def test_a_cut_response_has_no_end_token_to_score() -> None:
    rows = [{"prompt_token_ids": [2, 3]}, {"prompt_token_ids": [4]}]
    found = collated(rows, [Generation([5, 6], False), Generation([7], True)], 0, 8)
    assert found.inputs.tolist() == [[2, 3, 5, 6], [4, 7, 0, 0]]
    assert found.targets.tolist() == [[-100, 5, 6, -100], [7, 0, -100, -100]]
    assert found.lengths == [2, 2]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_measured_tokens_equal_the_textbook(tiny_gpt: Any, temperature: float) -> None:
    model = ActorCritic(tiny_gpt())
    rows = [{"prompt_token_ids": [2, 3]}, {"prompt_token_ids": [4]}, {"prompt_token_ids": [5, 1]}]
    answers = [Generation([5, 6], False), Generation([7], True), Generation([], True)]
    responses = collated(rows, answers, 0, 8)
    torch.nn.init.normal_(model.value_head.weight)
    found = measure(model, responses, temperature, 2)
    with torch.no_grad():
        hidden = model.gpt.hidden_states(responses.inputs)
        chances = (model.gpt.head(hidden).double() / temperature).softmax(-1)
    is_scored = responses.targets != IGNORE_INDEX
    chosen = chances.gather(-1, responses.targets.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(found.log_probabilities, chosen.log()[is_scored], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.entropies, -(chances * chances.log()).sum(-1)[is_scored], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.values.float(), model.value_head(hidden)[..., 0][is_scored])


def test_the_critic_computes_in_float32_under_autocast(tiny_gpt: Any) -> None:
    model = ActorCritic(tiny_gpt())
    torch.nn.init.normal_(model.value_head.weight)
    hidden = torch.randn(5, model.gpt.config.emb_dim)
    expected = model.values(hidden)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.values(hidden), expected)


def test_rollouts_by_hand(params: Any) -> None:
    rows = [{"prompt_token_ids": [2]}] * 4
    answers = [Generation([5], True), Generation([6], False), Generation([], True), Generation([7], False)]
    responses = collated(rows, answers, 0, 8)
    old, reference = torch.arange(5).double(), torch.zeros(5).double()
    grpo = grpo_rollout(responses, [1.0, 0.0, 2.0, 2.0], 2, old, reference)
    assert grpo.advantages.tolist() == [1.0, 1.0, -1.0, 0.0, 0.0]
    assert grpo.scale.tolist() == [0.5, 0.5, 1.0, 1.0, 1.0]
    measured = Measured(old, old, torch.ones(5).double())
    ppo = ppo_rollout(responses, [1.0, 0.0, 2.0, 2.0], measured, reference, params(kl_coefficient=0.1, gae_decay=1.0))
    # what is still to come: the reward less 0.1 times the log-ratios of this and the later tokens
    assert ppo.returns.tolist() == pytest.approx([0.9, 0.9, -0.2, 1.7, 1.6])
    assert float(ppo.advantages.mean()) == pytest.approx(0)
    assert float(ppo.advantages.square().mean()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperature": 0.0}, "temperature is 0, so all responses to a prompt are the same"),
        ({"responses_per_prompt": 1}, "responses_per_prompt is 1, but grpo compares several"),
        ({"clip": 0.0}, "reinforce_runs.x: clip"),
        ({"algorithm": "dpo"}, "must be 'grpo' or 'ppo'"),
        ({"lenght": 1}, "unknown key lenght"),
    ],
)
def test_a_run_that_cannot_work_is_refused(params: Any, changes: dict[str, Any], words: str) -> None:
    runs = {"x": ReinforceRun(reward="tokens/preferences", **changes)}
    with pytest.raises(UserError, match=words):
        with_changes(params(), runs, "reinforce_runs", "x")
    clipped = {"y": ReinforceRun(reward="tokens/preferences", clip=0.3)}
    assert with_changes(params(), clipped, "reinforce_runs", "y").clip == 0.3


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    splits = {"train": prompts_of(2)}
    with pytest.raises(UserError, match=r"a prompt has 2 tokens.*max_new_tokens 7 more.*context of 8.*lower"):
        Prompts(splits, WORDS, 8, 7)
