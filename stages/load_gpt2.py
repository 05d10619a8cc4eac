"""Turn one OpenAI GPT-2 checkpoint into our format, and measure it on the corpus."""

from pathlib import Path
from typing import cast

from scratchlm.arithmetic.fingerprint import describe_arithmetic
from scratchlm.data.catalogue import GPT2Size
from scratchlm.data.windows import Corpus
from scratchlm.fast.kernels import set_up
from scratchlm.formats.native import save_gpt
from scratchlm.formats.openai import load_openai
from scratchlm.model.gpt import parameter_count
from scratchlm.run.context import Run
from scratchlm.run.device import DeviceParams
from scratchlm.run.files import temporary_folder, write_json, write_table
from scratchlm.run.params import read_params
from scratchlm.run.stage import start
from scratchlm.tasks.language_model import LOSS_SCHEMA, loss_rows
from scratchlm.tasks.pretraining import CorpusEvaluation
from scratchlm.tasks.settings import EvaluationParams


class Params(DeviceParams):
    evaluation: EvaluationParams


def main(run: Run, *, params: Path, checkpoint: Path, corpus: Path, model: Path, losses: Path, metrics: Path) -> None:
    p = read_params(params, Params)
    set_up(run, p)
    size = cast(GPT2Size, checkpoint.name.removeprefix("gpt2-"))
    with temporary_folder(model) as scratch:
        gpt, n_tensors = load_openai(checkpoint, size, scratch)
    save_gpt(model, gpt)
    evaluation = CorpusEvaluation(Corpus(corpus, gpt.config.vocab_size), p.evaluation)
    with run.autocast():
        measured = evaluation.full(gpt.to(run.device), "val")
    write_table(losses, loss_rows(evaluation.val_ids(), measured), LOSS_SCHEMA)
    counts = {"parameters": parameter_count(gpt), "tensors_mapped": n_tensors}
    write_json(metrics, {"val": evaluation.metrics(measured, "val")} | counts | describe_arithmetic(run.device))


if __name__ == "__main__":
    start(main, "val.loss")
