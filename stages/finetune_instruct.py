"""Finetune a base model to follow instructions."""

from pathlib import Path

from scratchlm.arithmetic.fingerprint import describe_arithmetic
from scratchlm.data.instructions import INSTRUCTION_SCHEMA
from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.fast.kernels import set_up
from scratchlm.formats.native import load_gpt, save_gpt
from scratchlm.model.lora import apply_lora, merge_lora
from scratchlm.run.context import Run
from scratchlm.run.device import RuntimeParams
from scratchlm.run.files import read_splits, write_csv, write_json, write_table
from scratchlm.run.params import read_params
from scratchlm.run.stage import start
from scratchlm.tasks import instruct
from scratchlm.tasks.language_model import LOSS_SCHEMA, loss_rows
from scratchlm.tasks.settings import EvaluationParams
from scratchlm.training.loop import train


class Params(RuntimeParams):
    finetune_instruct: instruct.FinetuneInstructParams
    evaluation: EvaluationParams


def main(
    run: Run, *, params: Path, tokenizer: Path, instructions: Path, base: Path, model: Path, losses: Path,
    samples: Path, metrics: Path, curve: Path, steps: Path,
) -> None:  # fmt: skip
    p = read_params(params, Params)
    set_up(run, p)
    gpt = load_gpt(base, dropout=p.finetune_instruct.dropout).to(run.device)
    tasks = instruct.Instructions(
        read_splits(instructions, INSTRUCTION_SCHEMA), load_tokenizer(tokenizer), gpt.config.context_length
    )
    for split, rows in tasks.splits.items():
        if n_cut := tasks.n_cut(split):
            context = f"the context's {gpt.config.context_length} tokens"
            run.say(f"{n_cut} of {len(rows)} {split} responses are cut at {context}")
    evaluation = instruct.ResponseEvaluation(tasks, p.evaluation)
    with run.autocast():
        before = evaluation.full(gpt)
    apply_lora(gpt, p.finetune_instruct.lora, p.seed)
    training = train(gpt, instruct.instruct_task(tasks, p.finetune_instruct, evaluation), run)
    adapter = merge_lora(gpt)
    with run.autocast():
        after = evaluation.full(gpt)
    write_table(losses, loss_rows(evaluation.test_ids(), after["test"]), LOSS_SCHEMA)
    write_json(samples, training.samples)
    write_csv(curve, training.curve)
    write_csv(steps, training.steps)
    mean_losses = {"before": instruct.mean_losses(before), "after": instruct.mean_losses(after)}
    write_json(metrics, mean_losses | describe_arithmetic(run.device))
    save_gpt(model, gpt, adapter)


if __name__ == "__main__":
    start(main, "before.val_loss", "after.val_loss")
