"""Train a GPT from random weights on the corpus."""

from pathlib import Path

from scratchlm.arithmetic.fingerprint import describe_arithmetic
from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.data.windows import Corpus
from scratchlm.fast.kernels import set_up
from scratchlm.formats.native import save_gpt
from scratchlm.model.config import ModelParams
from scratchlm.run.context import Run
from scratchlm.run.device import RuntimeParams
from scratchlm.run.files import write_csv, write_json, write_table
from scratchlm.run.params import read_params
from scratchlm.run.stage import start
from scratchlm.tasks.language_model import LOSS_SCHEMA
from scratchlm.tasks.pretraining import PretrainParams, pretrain_gpt, text_sampler
from scratchlm.tasks.settings import EvaluationParams


class Params(RuntimeParams):
    model: ModelParams
    pretrain: PretrainParams
    evaluation: EvaluationParams


def main(
    run: Run, *, params: Path, tokenizer: Path, corpus: Path, model: Path, losses: Path, samples: Path,
    metrics: Path, curve: Path, steps: Path,
) -> None:  # fmt: skip
    p = read_params(params, Params)
    set_up(run, p)
    text = load_tokenizer(tokenizer)
    tokens, config = Corpus(corpus, text.vocab_size), p.model.config(text.vocab_size)
    sample = text_sampler(text, p.pretrain, p.seed)
    result = pretrain_gpt(tokens, config, p.pretrain, p.evaluation, run, sample)
    write_table(losses, result.losses, LOSS_SCHEMA)
    write_json(samples, result.training.samples)
    write_csv(curve, result.training.curve)
    write_csv(steps, result.training.steps)
    write_json(metrics, result.metrics | describe_arithmetic(run.device))
    save_gpt(model, result.model)


if __name__ == "__main__":
    start(main, "untrained_val_loss", "val.loss", "val.perplexity")
