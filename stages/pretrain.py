"""Train a GPT from random weights on the corpus."""

from pathlib import Path

from scratchlm.data.corpus import TokenWindows, read_counts
from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.formats.native import save_gpt
from scratchlm.model.config import ModelParams
from scratchlm.model.gpt import build_model, parameter_count
from scratchlm.run.device import RuntimeParams, autocast, set_up, stream
from scratchlm.run.files import write_csv, write_json, write_table
from scratchlm.run.params import read_params
from scratchlm.run.resume import Resume
from scratchlm.run.stage import run
from scratchlm.tasks.corpus import CorpusEvaluation, corpus_scores
from scratchlm.tasks.language_model import LOSS_SCHEMA, loss_rows
from scratchlm.tasks.pretraining import PretrainParams, pretraining_task
from scratchlm.tasks.samples import TextSampler
from scratchlm.tasks.settings import EvaluationParams
from scratchlm.training.loop import train


class Params(RuntimeParams):
    model: ModelParams
    pretrain: PretrainParams
    evaluation: EvaluationParams


def main(
    params: Path, tokenizer: Path, corpus: Path, model: Path, losses: Path, samples: Path,
    metrics: Path, curve: Path, log: Path, resume: Resume,
) -> None:  # fmt: skip
    p = read_params(params, Params)
    device = set_up(p)
    text = load_tokenizer(tokenizer)
    gpt = build_model(p.model.config(text.vocab_size), stream(p.seed, "initialisation")).to(device)
    evaluation = CorpusEvaluation(corpus, p.evaluation)
    windows = TokenWindows(evaluation.tokens("train"), p.model.context_length, p.pretrain.stride)
    sampler = TextSampler(gpt, text, p.pretrain.sample_prompt, p.pretrain.sample_tokens)
    task = pretraining_task("pretrain", windows, lambda: sampler.after(evaluation.quick(gpt)), sampler.samples)
    with autocast(p, device):
        untrained = evaluation.full(gpt, "val")
    rows = train(gpt, task, p.pretrain, p, device, log, resume)
    counts = read_counts(corpus)
    with autocast(p, device):
        measured = {split: evaluation.full(gpt, split) for split in ("train", "val")}
    scores = {
        split: corpus_scores(measured[split], counts[split]["tokens"], counts[split]["bytes"]) for split in measured
    }
    write_table(losses, loss_rows(evaluation.val_ids(), measured["val"]), LOSS_SCHEMA)
    write_json(samples, sampler.samples)
    write_csv(curve, rows)
    write_json(metrics, scores | {"parameters": parameter_count(gpt), "untrained_val_loss": untrained.mean})
    save_gpt(model, gpt)


if __name__ == "__main__":
    run(main)
