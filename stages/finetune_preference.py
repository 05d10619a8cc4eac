"""Finetune the assistant to prefer one response to another."""

from pathlib import Path

from scratchlm.arithmetic.fingerprint import describe_arithmetic
from scratchlm.data.preferences import PREFERENCE_SCHEMA
from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.fast.kernels import set_up
from scratchlm.formats.native import load_gpt, save_gpt
from scratchlm.model.lora import apply_lora, merge_lora
from scratchlm.run.context import Run
from scratchlm.run.device import RuntimeParams
from scratchlm.run.files import read_splits, write_csv, write_json, write_table
from scratchlm.run.params import Runs, read_params, with_changes
from scratchlm.run.stage import start
from scratchlm.tasks import preference
from scratchlm.tasks.settings import EvaluationParams
from scratchlm.training.loop import train


class Params(RuntimeParams):
    finetune_preference: preference.FinetunePreferenceParams
    evaluation: EvaluationParams
    preference_runs: Runs


def main(
    run: Run, *, params: Path, tokenizer: Path, preferences: Path, assistant: Path, model: Path, pairs: Path,
    metrics: Path, curve: Path,
) -> None:  # fmt: skip
    p = read_params(params, Params)
    set_up(run, p)
    settings = with_changes(p.finetune_preference, p.preference_runs, "preference_runs", metrics.stem)
    gpt = load_gpt(assistant, dropout=settings.dropout).to(run.device)
    given = preference.Preferences(
        read_splits(preferences, PREFERENCE_SCHEMA), load_tokenizer(tokenizer).end_token_id, gpt.config.context_length
    )
    given.say_cuts(run)
    evaluation = preference.PairEvaluation(given, settings, p.evaluation)
    evaluation.measure_reference(gpt, run)
    apply_lora(gpt, settings.lora, p.seed)
    training = train(gpt, preference.preference_task(given, settings, evaluation), run)
    adapter = merge_lora(gpt)
    with run.autocast():
        scores = evaluation.full(gpt, load_gpt(assistant).to(run.device))
    write_table(pairs, scores["test"].rows(given.test_ids()), preference.PAIR_SCHEMA)
    write_csv(curve, training.curve)
    results = {split: found.metrics() for split, found in scores.items()}
    write_json(metrics, results | describe_arithmetic(run.device))
    save_gpt(model, gpt, adapter)


if __name__ == "__main__":
    start(main, "test.accuracy", "test.margin")
