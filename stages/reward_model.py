"""Train a model that rates responses, on the preferences."""

from pathlib import Path

from scratchlm.arithmetic.fingerprint import describe_arithmetic
from scratchlm.data.preferences import PREFERENCE_SCHEMA
from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.fast.kernels import set_up
from scratchlm.formats.native import load_gpt
from scratchlm.formats.reward import save_reward_model
from scratchlm.model.lora import merge_lora
from scratchlm.run.context import Run
from scratchlm.run.device import RuntimeParams
from scratchlm.run.files import read_splits, write_csv, write_json, write_table
from scratchlm.run.params import Runs, read_params, with_changes
from scratchlm.run.stage import start
from scratchlm.tasks import reward
from scratchlm.tasks.preference import Preferences
from scratchlm.tasks.settings import EvaluationParams
from scratchlm.training.loop import train


class Params(RuntimeParams):
    reward_model: reward.RewardModelParams
    evaluation: EvaluationParams
    reward_runs: Runs


def main(
    run: Run, *, params: Path, tokenizer: Path, preferences: Path, assistant: Path, model: Path, pairs: Path,
    metrics: Path, curve: Path,
) -> None:  # fmt: skip
    p = read_params(params, Params)
    set_up(run, p)
    settings = with_changes(p.reward_model, p.reward_runs, "reward_runs", metrics.stem)
    gpt = load_gpt(assistant, dropout=settings.dropout)
    given = Preferences(
        read_splits(preferences, PREFERENCE_SCHEMA), load_tokenizer(tokenizer).end_token_id, gpt.config.context_length
    )
    given.say_cuts(run)
    rating = reward.build_reward_model(gpt, settings, p.seed).to(run.device)
    evaluation = reward.RewardEvaluation(given, p.evaluation)
    training = train(rating, reward.reward_task(given, settings, evaluation), run)
    adapter = merge_lora(rating)
    with run.autocast():
        scores = evaluation.full(rating)
    write_table(pairs, scores["test"].rows(given.test_ids()), reward.REWARD_SCHEMA)
    write_csv(curve, training.curve)
    results = {split: found.metrics() for split, found in scores.items()}
    write_json(metrics, results | describe_arithmetic(run.device))
    save_reward_model(model, rating, adapter)


if __name__ == "__main__":
    start(main, "test.accuracy")
