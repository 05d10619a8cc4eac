"""Train the assistant on rewards for the responses that it samples."""

from pathlib import Path

from scratchlm.arithmetic.fingerprint import describe_arithmetic
from scratchlm.data.preferences import PREFERENCE_SCHEMA
from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.fast.kernels import set_up
from scratchlm.formats.native import load_gpt, save_gpt
from scratchlm.formats.reward import load_reward_model
from scratchlm.judge.rewards import reward_of
from scratchlm.model.lora import apply_lora, merge_lora
from scratchlm.run.context import Run
from scratchlm.run.device import RuntimeParams
from scratchlm.run.files import read_splits, write_csv, write_json, write_table
from scratchlm.run.params import read_params, with_changes
from scratchlm.run.stage import start
from scratchlm.tasks.policy_evaluation import GAIN_SCHEMA, PolicyEvaluation, Prompts, reward_metrics
from scratchlm.tasks.reinforce import ReinforceParams, ReinforceRun, policy_of, reinforce_task
from scratchlm.tasks.settings import EvaluationParams
from scratchlm.training.loop import train


class Params(RuntimeParams):
    reinforce: ReinforceParams
    evaluation: EvaluationParams
    reinforce_runs: dict[str, ReinforceRun]


def main(
    run: Run, *, params: Path, tokenizer: Path, preferences: Path, assistant: Path, reward: Path, model: Path,
    rewards: Path, samples: Path, metrics: Path, curve: Path, steps: Path,
) -> None:  # fmt: skip
    p = read_params(params, Params)
    set_up(run, p)
    settings = with_changes(p.reinforce, p.reinforce_runs, "reinforce_runs", metrics.stem)
    gpt, before = (load_gpt(assistant, dropout=0.0).to(run.device) for _ in range(2))
    apply_lora(gpt, settings.lora, p.seed)
    given, words = read_splits(preferences, PREFERENCE_SCHEMA), load_tokenizer(tokenizer)
    prompts = Prompts(given, words, gpt.config.context_length, settings.max_new_tokens)
    scorer = None if reward == preferences else load_reward_model(reward).to(run.device)
    earned = reward_of(scorer, words, settings.unfinished_reward)
    evaluation = PolicyEvaluation(prompts, earned, p.evaluation)
    training = train(policy_of(gpt, settings), reinforce_task(prompts, settings, earned, evaluation, before), run)
    adapter = merge_lora(gpt)
    with run.autocast():
        records = {split: evaluation.records(before, gpt, split) for split in prompts.splits}
    write_table(rewards, records["test"], GAIN_SCHEMA)
    write_csv(curve, training.curve)
    write_csv(steps, training.steps)
    write_json(samples, training.samples)
    results = {split: reward_metrics(rows, p.seed) for split, rows in records.items()}
    write_json(metrics, results | describe_arithmetic(run.device))
    save_gpt(model, gpt, adapter)


if __name__ == "__main__":
    start(main, "test.reward_before", "test.reward")
