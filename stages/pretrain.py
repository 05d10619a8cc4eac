"""Train a GPT from random weights on the corpus."""

from pathlib import Path

from scratchlm.arithmetic.fingerprint import describe_arithmetic
from scratchlm.arithmetic.random import stream
from scratchlm.data.corpus import Corpus, TokenWindows
from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.fast.kernels import set_up
from scratchlm.formats.native import save_gpt
from scratchlm.model.config import ModelParams
from scratchlm.model.gpt import build_model, parameter_count
from scratchlm.run.context import Run
from scratchlm.run.device import RuntimeParams
from scratchlm.run.files import write_csv, write_json, write_table
from scratchlm.run.params import read_params
from scratchlm.run.stage import start
from scratchlm.tasks.language_model import LOSS_SCHEMA, loss_rows
from scratchlm.tasks.pretraining import CorpusEvaluation, PretrainParams, TextSampler, pretraining_task
from scratchlm.tasks.settings import EvaluationParams
from scratchlm.training.loop import train


class Params(RuntimeParams):
    model: ModelParams
    pretrain: PretrainParams
    evaluation: EvaluationParams


def main(
    run: Run, *, params: Path, tokenizer: Path, corpus: Path, model: Path, losses: Path, samples: Path,
    metrics: Path, curve: Path,
) -> None:  # fmt: skip
    p = read_params(params, Params)
    set_up(run, p)
    text = load_tokenizer(tokenizer)
    tokens = Corpus(corpus, text.vocab_size)
    gpt = build_model(p.model.config(text.vocab_size), stream(p.seed, "initialisation")).to(run.device)
    windows = TokenWindows(tokens.tokens("train"), p.model.context_length, p.pretrain.stride)
    evaluation = CorpusEvaluation(tokens, p.evaluation)
    task = pretraining_task(windows, p.pretrain, evaluation.evaluate, TextSampler(text, p.pretrain).sample)
    with run.autocast():
        untrained = evaluation.full(gpt, "val")
    training = train(gpt, task, run)
    with run.autocast():
        measured = {split: evaluation.full(gpt, split) for split in ("train", "val")}
    scores = {split: evaluation.metrics(found, split) for split, found in measured.items()}
    write_table(losses, loss_rows(evaluation.val_ids(), measured["val"]), LOSS_SCHEMA)
    write_json(samples, training.samples)
    write_csv(curve, training.curve)
    others = {"parameters": parameter_count(gpt), "untrained_val_loss": untrained.mean}
    write_json(metrics, scores | others | describe_arithmetic(run.device))
    save_gpt(model, gpt)


if __name__ == "__main__":
    start(main)
