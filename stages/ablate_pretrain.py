"""Repeat pretraining with a few keys of the model changed."""

from pathlib import Path

from scratchlm.arithmetic.fingerprint import describe_arithmetic
from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.data.windows import Corpus
from scratchlm.fast.kernels import set_up
from scratchlm.model.config import ModelParams
from scratchlm.run.context import Run
from scratchlm.run.device import RuntimeParams
from scratchlm.run.files import write_json, write_table
from scratchlm.run.params import Runs, read_params, with_changes
from scratchlm.run.stage import start
from scratchlm.tasks.language_model import LOSS_SCHEMA
from scratchlm.tasks.pretraining import PretrainParams, pretrain_gpt
from scratchlm.tasks.settings import EvaluationParams


class Params(RuntimeParams):
    model: ModelParams
    pretrain: PretrainParams
    evaluation: EvaluationParams
    pretrain_ablations: Runs


def main(run: Run, *, params: Path, tokenizer: Path, corpus: Path, losses: Path, metrics: Path) -> None:
    p = read_params(params, Params)
    set_up(run, p)
    vocab_size = load_tokenizer(tokenizer).vocab_size
    config = with_changes(p.model, p.pretrain_ablations, "pretrain_ablations", metrics.stem).config(vocab_size)
    result = pretrain_gpt(Corpus(corpus, vocab_size), config, p.pretrain, p.evaluation, run)
    write_table(losses, result.losses, LOSS_SCHEMA)
    cache = {"kv_cache_bytes_per_token": config.kv_cache_bytes_per_token}
    write_json(metrics, result.metrics | cache | describe_arithmetic(run.device))


if __name__ == "__main__":
    start(main, "val.loss")
