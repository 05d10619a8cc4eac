"""Make data/sample/gpt2-nano: a nano GPT in the layout of OpenAI's GPT-2 checkpoints.

Run as `python tools/make_gpt2_nano.py` after make_text.py. It learns a vocabulary from the train splits of stories
and tasks, trains on the train split of the stories with this project's own loop, for more epochs than the
pipeline's pretraining, and writes hparams.json, model.ckpt.*, encoder.json and vocab.bpe. The text files are the
same in every run; the weights are the same on one class of processor.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors.numpy import save_file

from scratchlm.arithmetic.random import stream
from scratchlm.data.byte_pairs import save_byte_pairs, train_byte_pairs
from scratchlm.data.catalogue import VOCABULARY_FILES
from scratchlm.data.corpus import CorpusParams, split_chunks, write_corpus
from scratchlm.data.instructions import InstructionsParams, read_instructions, split_instructions
from scratchlm.data.prompts import format_prompt
from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.data.windows import Corpus
from scratchlm.fast.kernels import set_up
from scratchlm.formats.openai import hparams, to_openai
from scratchlm.model.config import NANO_CONTEXT_LENGTH, NANO_VOCAB_SIZE, gpt2_config
from scratchlm.model.gpt import build_model
from scratchlm.run.context import Run
from scratchlm.run.device import RuntimeParams
from scratchlm.run.files import atomic_folder, sha256_of, write_json
from scratchlm.tasks.pretraining import CorpusEvaluation, PretrainParams, pretraining_task
from scratchlm.tasks.settings import EvaluationParams
from scratchlm.training.loop import train

HERE = Path(__file__).resolve().parents[1] / "data" / "sample"
RUNTIME = RuntimeParams(device="cpu", threads=2, precision="float32", compile=False, seed=2019)
CORPUS = CorpusParams(split="position", deduplicate="none", train_fraction=0.9, shard_tokens=10_000_000)
INSTRUCTIONS = InstructionsParams(prompt_style="alpaca", deduplicate="none", train_fraction=0.85, test_fraction=0.1)
EVALUATION = EvaluationParams(context_length=128, batch_size=32, max_rows=64)
TRAINING = PretrainParams(
    epochs=10.0,
    batch_size=8,
    max_micro_batch_size=8,
    checkpoint_activations=False,
    learning_rate=2e-3,
    min_learning_rate=1e-4,
    schedule="cosine",
    warmup_steps=100,
    weight_decay=0.1,
    weight_decay_on="matrices",
    beta1=0.9,
    beta2=0.98,
    max_grad_norm=1.0,
    evaluate_every_steps=400,
    stride=200,
    sample_prompt="Sara was",
    sample_tokens=40,
)
# Runs in a separate process: TensorFlow can deadlock in one that also has torch
WRITER = """
import sys
from safetensors.numpy import load_file
import tensorflow as tf
variables = load_file(sys.argv[2])
names = sorted(variables)
tf.raw_ops.SaveV2(
    prefix=sys.argv[1], tensor_names=names, shape_and_slices=[""] * len(names), tensors=[variables[n] for n in names]
)
"""


def main() -> None:
    run = Run(stage="gpt2-nano")
    set_up(run, RUNTIME)
    tasks = split_instructions(read_instructions(HERE / "instruction-data.json"), INSTRUCTIONS)["train"]
    prompts = [format_prompt(task, INSTRUCTIONS.prompt_style) + task["output"] for task in tasks]
    stories = "".join(split_chunks(HERE / "stories.txt", CORPUS.train_fraction)["train"])
    encoder, merges = train_byte_pairs([stories, *prompts], NANO_VOCAB_SIZE)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        save_byte_pairs(work / "tokenizer", encoder, merges)
        write_corpus(HERE / "stories.txt", load_tokenizer(work / "tokenizer"), work / "corpus", CORPUS)
        config = gpt2_config("nano", NANO_VOCAB_SIZE, NANO_CONTEXT_LENGTH)
        gpt = build_model(config, stream(RUNTIME.seed, "initialisation"))
        corpus = Corpus(work / "corpus")
        evaluation = CorpusEvaluation(corpus, EVALUATION)
        windows = corpus.windows("train", NANO_CONTEXT_LENGTH, TRAINING.stride)
        task = pretraining_task(windows, TRAINING, lambda model: _shown(evaluation.evaluate(model)))
        train(gpt, task._replace(name="gpt2-nano"), run)
        save_file(to_openai(gpt), work / "variables.safetensors")
        with atomic_folder(HERE / "gpt2-nano") as folder:
            for name in VOCABULARY_FILES:
                (folder / name).write_bytes((work / "tokenizer" / name).read_bytes())
            write_json(folder / "hparams.json", hparams(config))
            command = [sys.executable, "-c", WRITER, str(folder / "model.ckpt"), str(work / "variables.safetensors")]
            subprocess.run(command, check=True)
    for path in sorted((HERE / "gpt2-nano").iterdir()):  # for gpt2-nano in data/sources.toml
        print(f'"{path.name}" = {{ sha256 = "{sha256_of(path)}", size_bytes = {path.stat().st_size:_} }}')


def _shown(metrics: dict[str, float]) -> dict[str, float]:
    print({name: round(value, 3) for name, value in metrics.items()}, flush=True)
    return metrics


if __name__ == "__main__":
    main()
