"""Turn another pretrained model into our format, and measure it on the corpus, in tokens of its own."""

from pathlib import Path

from scratchlm.arithmetic.fingerprint import describe_arithmetic
from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.data.tokenizing import TokenizeParams, tokenize_corpus
from scratchlm.data.windows import Corpus
from scratchlm.fast.kernels import set_up
from scratchlm.formats.native import save_gpt
from scratchlm.formats.pretrained import load_pretrained, vocabulary_folder
from scratchlm.model.gpt import parameter_count
from scratchlm.run.context import Run
from scratchlm.run.device import DeviceParams
from scratchlm.run.files import only_file, temporary_folder, write_json, write_table
from scratchlm.run.params import read_params
from scratchlm.run.stage import start
from scratchlm.tasks.language_model import LOSS_SCHEMA, loss_rows
from scratchlm.tasks.pretraining import CorpusEvaluation
from scratchlm.tasks.settings import EvaluationParams


class Params(DeviceParams):
    tokenize: TokenizeParams
    evaluation: EvaluationParams


def main(run: Run, *, params: Path, source: Path, corpus: Path, model: Path, losses: Path, metrics: Path) -> None:
    p = read_params(params, Params)
    set_up(run, p)
    gpt = load_pretrained(source)
    save_gpt(model, gpt)
    with temporary_folder(model) as scratch:
        tokenizer = load_tokenizer(vocabulary_folder(source, scratch))
        tokenize_corpus(only_file(corpus), tokenizer, scratch / "corpus", p.tokenize.corpus, run.checkpoint)
        evaluation = CorpusEvaluation(Corpus(scratch / "corpus", gpt.config.vocab_size), p.evaluation)
        with run.autocast():
            measured = evaluation.full(gpt.to(run.device), "val")
        write_table(losses, loss_rows(evaluation.val_ids(), measured), LOSS_SCHEMA)
        found = {"val": evaluation.metrics(measured, "val"), "parameters": parameter_count(gpt)}
    write_json(metrics, found | describe_arithmetic(run.device))


if __name__ == "__main__":
    start(main, "val.bits_per_byte")
