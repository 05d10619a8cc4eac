"""The training and answering of the sample's pipeline, without DVC, on any device."""

import copy
import math
import tempfile
from pathlib import Path

from benchmarks.harness import REPOSITORY, Run
from benchmarks.setting import Setting
from benchmarks.sources import instruction_splits, messages_of, params_of, source_file, started, tokenizer_of
from scratchlm.data.corpus import write_corpus
from scratchlm.data.windows import Corpus
from scratchlm.fast.kernels import set_up
from scratchlm.model.gpt import GPTModel
from scratchlm.run.context import Run as StageRun
from scratchlm.tasks.generation import Responder
from scratchlm.tasks.instruct import Instructions, ResponseEvaluation, instruct_task
from scratchlm.tasks.pretraining import pretrain_gpt, text_sampler
from scratchlm.tasks.spam import finetune_spam
from scratchlm.training.loop import train
from stages import finetune_instruct as instruct_stage
from stages import finetune_spam as spam_stage
from stages import generate as generate_stage
from stages import pretrain as pretrain_stage
from stages import tokenize as tokenize_stage

PARAMS = REPOSITORY / "params.yaml"
VOCABULARY = "gpt2-nano"


class Sample:
    """The stages with the parameters of params.yaml in another setting, each as its script calls it.

    share: of the epochs and of the answers. The finetunings start from the model that was pretrained: the sample's own
    checkpoint needs TensorFlow.
    """

    def __init__(self, setting: Setting, share: float) -> None:
        self.setting, self.share = setting, share
        self.tokenizer = tokenizer_of(VOCABULARY)
        self.messages = messages_of("sample-messages", VOCABULARY)
        self.instructions = instruction_splits("sample-instructions", VOCABULARY)

    def pretrain(self, run: StageRun, corpus: Corpus) -> tuple[GPTModel, int]:
        p = params_of(PARAMS, pretrain_stage.Params, self.setting)
        params = p.pretrain.model_copy(update={"epochs": p.pretrain.epochs * self.share})
        set_up(run, p)
        sample = text_sampler(self.tokenizer, params, p.seed)
        found = pretrain_gpt(corpus, p.model.config(self.tokenizer.vocab_size), params, p.evaluation, run, sample)
        return found.model, int(found.training.curve[-1]["step"])

    def finetune_spam(self, run: StageRun, base: GPTModel) -> int:
        p = params_of(PARAMS, spam_stage.Params, self.setting)
        params = p.finetune_spam.model_copy(update={"epochs": p.finetune_spam.epochs * self.share})
        set_up(run, p)
        end = self.tokenizer.end_token_id
        found = finetune_spam(copy.deepcopy(base), self.messages, end, params, p.evaluation, run)
        return int(found.training.curve[-1]["step"])

    def finetune_instruct(self, run: StageRun, gpt: GPTModel) -> int:
        p = params_of(PARAMS, instruct_stage.Params, self.setting)
        params = p.finetune_instruct.model_copy(update={"epochs": p.finetune_instruct.epochs * self.share})
        set_up(run, p)
        instructions = Instructions(self.instructions, self.tokenizer, gpt.config.context_length)
        evaluation = ResponseEvaluation(instructions, p.evaluation)
        curve = train(gpt, instruct_task(instructions, params, evaluation), run).curve
        with run.autocast():
            evaluation.full(gpt)
        return int(curve[-1]["step"])

    def generate(self, run: StageRun, gpt: GPTModel) -> None:
        p = params_of(PARAMS, generate_stage.Params, self.setting)
        set_up(run, p)
        rows = self.instructions["test"]
        rows = rows[: math.ceil(self.share * len(rows))]
        with run.autocast():
            for _ in Responder(self.tokenizer, p.generate, run).responses(gpt, "instruct", rows):
                pass


def stages(setting: Setting, share: float = 1.0) -> Run:
    """Pretraining, both finetunings and the assistant's answers; the units are optimizer steps."""
    sample = Sample(setting, share)

    def run() -> float:
        with tempfile.TemporaryDirectory(prefix="scratchlm-benchmark-") as name:
            folder = Path(name) / "corpus"
            p = params_of(PARAMS, tokenize_stage.Params, setting)
            write_corpus(source_file("sample-stories", "stories.txt"), sample.tokenizer, folder, p.tokenize.corpus)
            with started("pretrain") as context:
                gpt, n_steps = sample.pretrain(context, Corpus(folder, sample.tokenizer.vocab_size))
        with started("finetune_spam") as context:
            n_steps += sample.finetune_spam(context, gpt)
        with started("finetune_instruct") as context:
            n_steps += sample.finetune_instruct(context, gpt)
        with started("generate") as context:
            sample.generate(context, gpt)
        return n_steps

    return run
