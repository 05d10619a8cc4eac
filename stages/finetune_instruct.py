"""Finetune a base model to follow instructions."""

from pathlib import Path

from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.formats.native import load_gpt, save_gpt
from scratchlm.model.lora import adapter_state, merge_lora
from scratchlm.run.device import RuntimeParams, autocast, set_up
from scratchlm.run.files import read_splits, write_csv, write_json, write_table
from scratchlm.run.params import read_params
from scratchlm.run.resume import Resume
from scratchlm.run.stage import run
from scratchlm.tasks.instruct import FinetuneInstructParams, instruct_task, prepare_assistant
from scratchlm.tasks.language_model import LOSS_SCHEMA, loss_rows
from scratchlm.tasks.responses import ResponseEvaluation, mean_losses
from scratchlm.tasks.settings import EvaluationParams
from scratchlm.training.loop import train


class Params(RuntimeParams):
    finetune_instruct: FinetuneInstructParams
    evaluation: EvaluationParams


def main(
    params: Path, tokenizer: Path, instructions: Path, base: Path, model: Path, losses: Path,
    samples: Path, metrics: Path, curve: Path, log: Path, resume: Resume,
) -> None:  # fmt: skip
    p = read_params(params, Params)
    device = set_up(p)
    splits = read_splits(instructions)
    gpt = load_gpt(base, dropout=p.finetune_instruct.dropout).to(device)
    text = load_tokenizer(tokenizer)
    evaluation = ResponseEvaluation(splits, text, gpt.config.context_length, p.evaluation)
    with autocast(p, device):
        before = evaluation.full(gpt)
    prepare_assistant(gpt, p.finetune_instruct, p.seed)
    task = instruct_task(
        splits["train"], text.end_token_id, gpt.config.context_length, p.finetune_instruct,
        lambda: evaluation.quick(gpt), evaluation.samples,
    )  # fmt: skip
    rows = train(gpt, task, p.finetune_instruct, p, device, log, resume)
    adapter = adapter_state(gpt)
    merge_lora(gpt)
    with autocast(p, device):
        after = evaluation.full(gpt)
    write_table(losses, loss_rows(evaluation.test_ids(), after["test"]), LOSS_SCHEMA)
    write_json(samples, evaluation.samples)
    write_csv(curve, rows)
    write_json(metrics, {"before": mean_losses(before), "after": mean_losses(after)})
    save_gpt(model, gpt, adapter)


if __name__ == "__main__":
    run(main)
