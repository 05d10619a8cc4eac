"""The rows of benchmarks.gpu: what runs on a card, at full size or small enough to try it on a CPU."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from benchmarks import sample
from benchmarks.baselines import our_config
from benchmarks.flops import flops_per_token, in_tokens
from benchmarks.harness import Contender, Row, matrix_products
from benchmarks.rows import decoding, instruct, spam
from benchmarks.rows.pretraining import Steps, book_recipe, huggingface, ours
from benchmarks.setting import Setting
from benchmarks.sources import is_at_hand
from scratchlm.data.catalogue import VOCABULARY_FILES
from scratchlm.model.config import GPT2_CONTEXT_LENGTH, SizeName

OURS, COMPILED = "scratchlm", "scratchlm, compiled"
PEAK = "matrix products"
PRETRAIN_TARGETS = ({"transformers, compiled": 1.5, "llms-from-scratch": 1.05, PEAK: 0.7}, {PEAK: 0.55})  # 124M, 355M
TRAINING_NOTES = (
    "Equal: the model's shape, the batch as one micro batch, fused AdamW, dropout 0, the loss over every token. "
    "scratchlm: the step of its own training loop, batches from its windows, deterministic kernels, float32 weights, "
    "autocast. transformers: its model with SDPA, float32 weights, autocast, inputs already on the card; compiled: by "
    "torch.compile. llms-from-scratch: chapter 5's bonus recipe for one card: GPTModelFast with SDPA, compiled, "
    "weights and moments in bfloat16 (no float32 master weights), 50,304 tokens, a head of its own, inputs already on "
    "the card. matrix products: the tokens whose FLOP large products do in the same time, the card's measured peak; "
    "the FLOP are those of scratchlm's model for everyone. Memory is what torch allocated on the card."
)
SPAM_NOTES = (
    "The book's chapter 6: last block trained, five epochs, evaluations every 50 steps on 40 messages of train and of "
    "val, the accuracy of the three splits at the end. scratchlm: all of it, from token ids to scores. "
    "llms-from-scratch: up to 130 of the steps with its own functions, in float32, the only precision it has, the "
    "evaluation that belongs to them, and the same share of the batches whose accuracy the whole run takes. "
)
INSTRUCT_NOTES = (
    "The book's chapter 7: batches of 8, the loss over prompt and response, an evaluation on 40 examples of train and "
    "of val every 5 steps. scratchlm: two epochs; its evaluation scores responses only, and no answers are written. "
    "llms-from-scratch: 61 steps of custom_collate_fn and train_model_simple without its sample, in float32, the only "
    "precision it has; its head is not tied to its embedding. "
)
DECODING_NOTES = (
    "Equal: weights in bfloat16 or autocast, prompts as token ids, greedy choice, how many tokens are made; prompts "
    "are read anew in each call, and reading them is part of the time. transformers: generate; static: with its static "
    "cache, whose steps it compiles. The goal is 1,500 tokens per second for one sequence, 15,000 for sixteen."
)
EXACT_NOTES = "The same weights, data and code in both precisions. Results in `exact` are those of a CPU."
SAMPLE_NOTES = (
    "The sample's pretraining, both finetunings with all evaluations, and the assistant's answers, as the stages call "
    "them. The finetunings start from the pretrained model. Results in `exact` are those of a CPU."
)


class Data(NamedTuple):
    """Sources of the catalogue."""

    messages: str
    instructions: str
    vocabulary: str

    @property
    def files(self) -> list[tuple[str, str]]:
        """Source and name of each file."""
        files = [(self.messages, "SMSSpamCollection"), (self.instructions, "instruction-data.json")]
        return files + [(self.vocabulary, name) for name in VOCABULARY_FILES]

    def is_at_hand(self) -> bool:
        """Whether the files are here, so that no network is needed."""
        return all(is_at_hand(source, name) for source, name in self.files)


BOOKS = Data("sms-spam", "instruction-data", "gpt2-124M")
SAMPLES = Data("sample-messages", "sample-instructions", "gpt2-nano")


class Scale(NamedTuple):
    """Models and amounts of work.

    windows: of a training step, with the first model and with the second. products: size and times of the peak's
    matrix products. tokens: of a prompt, and new ones. share: of the sample.
    """

    models: tuple[SizeName, SizeName]
    windows: tuple[int, int]
    context: int
    steps: int
    products: Mapping[str, int]
    tokens: tuple[int, int]
    spam: Mapping[str, Any]
    instruct: tuple[int | None, int]  # steps of ours, None for all, and of the book
    share: float


GPT2 = Scale(
    ("124M", "355M"), (16, 8), GPT2_CONTEXT_LENGTH, 20, {"size": 8192, "times": 100}, (64, 128),
    {"epochs": 5, "steps": 130}, (None, 60), 1.0,
)  # fmt: skip
NANO = Scale(
    ("nano", "nano"), (2, 1), 16, 1, {"size": 64, "times": 2}, (4, 4), {"epochs": 0.1, "steps": 2}, (1, 1), 0.02
)


class Place(NamedTuple):
    """compiler: the backend of torch.compile for the baselines."""

    device: str
    compiler: str
    data: Data


def gpu_rows(scale: Scale, place: Place) -> dict[str, Row]:
    """Every row by name."""
    first, second = scale.models
    names = ("124M", "355M")
    rows = {
        f"pretrain_{name}": pretrain_row(size, n, scale, place, targets)
        for name, size, n, targets in zip(names, scale.models, scale.windows, PRETRAIN_TARGETS, strict=True)
    }
    rows |= {"spam": spam_row(first, scale, place), "instruct": instruct_row(second, scale, place)}
    rows |= {f"decode_{n}": decode_row(decoding.Work(first, n, *scale.tokens), place) for n in (1, 16, 110)}
    return rows | {"exact_pretrain": exact_row(first, scale, place), "sample": sample_row(scale, place)}


def per_token(size: SizeName, scale: Scale) -> int:
    """FLOP of a training step for each token."""
    return flops_per_token(our_config(size), scale.context)


def in_bfloat16(place: Place) -> dict[str, Setting]:
    """Ours by name: compiled, where the library can compile, and not."""
    setting = Setting("bfloat16", place.device)
    return {COMPILED: setting._replace(compiled=True), OURS: setting}


def pretrain_row(size: SizeName, n_windows: int, scale: Scale, place: Place, targets: Mapping[str, float]) -> Row:
    contenders = {}
    for name, setting in in_bfloat16(place).items():
        work = Steps(n_windows, scale.context, scale.steps, *setting)
        contenders[name] = Contender(ours, {"size": size, "work": work, "micro_batch_size": n_windows})
    theirs: dict[str, Any] = {"size": size, "work": work._replace(compiled=False)}
    products = dict(scale.products) | {"precision": work.precision, "device": place.device}
    contenders |= {
        "transformers": Contender(huggingface, theirs | {"fused": True}),
        "transformers, compiled": Contender(huggingface, theirs | {"fused": True, "compiler": place.compiler}),
        "llms-from-scratch": Contender(book_recipe, theirs | {"compiler": place.compiler}),
        PEAK: Contender(
            in_tokens, {"setup": matrix_products, "options": products, "per_token": per_token(size, scale)}
        ),
    }
    return Row("tokens", contenders, targets, TRAINING_NOTES)


def decode_row(work: decoding.Work, place: Place) -> Row:
    contenders = {
        name: Contender(decoding.ours, {"work": work, "setting": setting})
        for name, setting in in_bfloat16(place).items()
    }
    theirs = {"work": work, "precision": "bfloat16", "device": place.device}
    contenders |= {
        "transformers": Contender(decoding.huggingface, theirs),
        "transformers, static": Contender(decoding.huggingface, theirs | {"compiler": place.compiler}),
    }
    notes = (
        f"{DECODING_NOTES} Prompts at once: {work.n_prompts}, of {work.prompt_tokens} tokens; new: {work.new_tokens}."
    )
    return Row("new tokens", contenders, {"transformers, static": 2.0}, notes, repeats=3)


def finetunings(place: Place) -> dict[str, Setting]:
    """Ours by name. Not compiled: that takes longer than the finetuning."""
    return {f"{OURS}, {precision}": Setting(precision, place.device) for precision in ("bfloat16", "float32")}


def of_data(notes: str, place: Place) -> str:
    return f"{notes}Data: {place.data.messages}, {place.data.instructions}, {place.data.vocabulary}."


def spam_row(size: SizeName, scale: Scale, place: Place) -> Row:
    shape = {"size": size, "source": place.data.messages, "vocabulary": place.data.vocabulary}
    epochs = {"epochs": scale.spam["epochs"]}
    contenders = {
        name: Contender(spam.ours, shape | epochs | {"setting": setting})
        for name, setting in finetunings(place).items()
    }
    contenders["llms-from-scratch"] = Contender(spam.book, shape | scale.spam | {"device": place.device})
    targets = {"llms-from-scratch": 5.0}
    return Row("training messages", contenders, targets, of_data(SPAM_NOTES, place), repeats=2)


def instruct_row(size: SizeName, scale: Scale, place: Place) -> Row:
    shape = {"size": size, "source": place.data.instructions, "vocabulary": place.data.vocabulary}
    our_steps, books_steps = scale.instruct
    contenders = {
        name: Contender(instruct.ours, shape | {"steps": our_steps, "setting": setting})
        for name, setting in finetunings(place).items()
    }
    contenders["llms-from-scratch"] = Contender(instruct.book, shape | {"steps": books_steps, "device": place.device})
    targets = {"llms-from-scratch": 3.0}
    return Row("training examples", contenders, targets, of_data(INSTRUCT_NOTES, place), repeats=2)


def exact_row(size: SizeName, scale: Scale, place: Place) -> Row:
    n_windows = max(1, scale.windows[0] // 4)
    contenders = {
        precision: Contender(
            ours,
            {
                "size": size,
                "work": Steps(n_windows, scale.context, 2, precision, place.device),
                "micro_batch_size": n_windows,
            },
        )
        for precision in ("exact", "float32")
    }
    return Row("tokens", contenders, {}, EXACT_NOTES, repeats=3)


def sample_row(scale: Scale, place: Place) -> Row:
    contenders = {
        precision: Contender(sample.stages, {"setting": Setting(precision, place.device), "share": scale.share})
        for precision in ("exact", "float32")
    }
    return Row("training steps", contenders, {}, SAMPLE_NOTES, repeats=1)
