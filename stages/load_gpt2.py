"""Turn one OpenAI GPT-2 checkpoint into our format, and measure it on the corpus."""

from pathlib import Path
from typing import cast

from scratchlm.data.catalogue import GPT2Size
from scratchlm.data.corpus import read_counts
from scratchlm.formats.native import save_gpt
from scratchlm.formats.openai import load_openai
from scratchlm.model.gpt import parameter_count
from scratchlm.run.device import DeviceParams, autocast, set_up
from scratchlm.run.files import scratch_folder, write_json, write_table
from scratchlm.run.params import read_params
from scratchlm.run.stage import run
from scratchlm.tasks.corpus import CorpusEvaluation, corpus_scores
from scratchlm.tasks.language_model import LOSS_SCHEMA, loss_rows
from scratchlm.tasks.settings import EvaluationParams


class Params(DeviceParams):
    evaluation: EvaluationParams


def main(params: Path, checkpoint: Path, corpus: Path, model: Path, losses: Path, metrics: Path) -> None:
    p = read_params(params, Params)
    device = set_up(p)
    size = cast(GPT2Size, checkpoint.name.removeprefix("gpt2-"))
    with scratch_folder(model) as scratch:
        gpt, n_tensors = load_openai(checkpoint, size, scratch)
    save_gpt(model, gpt)
    evaluation = CorpusEvaluation(corpus, p.evaluation)
    with autocast(p, device):
        measured = evaluation.full(gpt.to(device), "val")
    counts = read_counts(corpus)["val"]
    write_table(losses, loss_rows(evaluation.val_ids(), measured), LOSS_SCHEMA)
    scores = {"val": corpus_scores(measured, counts["tokens"], counts["bytes"])}
    write_json(metrics, scores | {"parameters": parameter_count(gpt), "tensors_mapped": n_tensors})


if __name__ == "__main__":
    run(main)
