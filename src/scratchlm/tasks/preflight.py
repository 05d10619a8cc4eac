"""Checks before any work starts: do the sections of params.yaml fit together? Each section checks itself."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scratchlm.data.own_data import own_files
from scratchlm.data.pinning import check_manifest
from scratchlm.fast.compiler import refuse_missing_compiler
from scratchlm.model.config import PRETRAINED, GPTConfig, ModelParams, published_config
from scratchlm.run.device import resolve_device
from scratchlm.run.errors import UserError
from scratchlm.run.params import SHOWN_CHARACTERS, with_changes
from scratchlm.tasks.memory import Training, shortage
from scratchlm.tasks.reinforce import REFERENCE, REWARD_MODELS, ReinforceParams
from scratchlm.tasks.spam import varied
from scratchlm.tasks.variants import ASSISTANT_FOLDER, BASE
from scratchlm.training.repeatable import check_repeatable

MAX_NAME_BYTES = 100  # of a variant, whose files have longer names
ITEMS = {  # of each stage that runs once per item, the section that names the items
    "load_gpt2": "gpt2_sizes",
    "load_pretrained": "pretrained",
    "ablate_pretrain": "pretrain_ablations",
    "ablate_spam": "spam_ablations",
    "finetune_preference": "preference_runs",
    "reward_model": "reward_runs",
    "reinforce": "reinforce_runs",
    "generate": "variants",
}


def check_together(params: Any) -> None:
    """Raises UserError with one sentence for each combination in `params`, all of params.yaml, that cannot work."""
    device = resolve_device(params.device, params.precision)
    if params.compile:
        refuse_missing_compiler(device)
    if device == "mps":
        check_repeatable(device, params.precision)
    for source in params.sources.own.values():
        own_files(source)  # raises if there is none
    if params.sources.pinned:
        check_manifest(Path(params.sources.pinned.manifest), params.tokenize.corpus.split)
    checks = (_vocabularies, _bases, _variants, _contexts, _steps, _ranks, _rewards, _pairs, _memory, _names)
    if mistakes := [mistake for check in checks for mistake in check(params)]:
        raise UserError("\n".join(mistakes))


def stale_files(params: Any, metrics: Path, data: Path) -> list[Path]:
    """Metrics and responses of models, ablations and variants that params.yaml no longer names.

    No stage reads or deletes them, but the judge depends on the folder of responses, and would run again without them.
    metrics: the folder with one folder per stage that runs several times, and in it one JSON file per item.
    """
    folders = {metrics / stage: section for stage, section in ITEMS.items()}
    folders[data / "responses" / "generate"] = ITEMS["generate"]
    return [
        path
        for folder, section in folders.items()
        for path in sorted(folder.glob("*"))
        if path.suffix in (".json", ".parquet") and path.stem not in getattr(params, section)
    ]


def _names(params: Any) -> Iterator[str]:
    """An item's name is part of the names of its files."""
    for section in ITEMS.values():
        for name in getattr(params, section):
            if not re.fullmatch(r"[\w-]+", name) or len(name.encode()) > MAX_NAME_BYTES:
                yield (
                    f"{section} has the name {name[:SHOWN_CHARACTERS]!r}; use at most {MAX_NAME_BYTES} letters, "
                    "digits, _ and - only"
                )


def _vocabularies(params: Any) -> Iterator[str]:
    """Every GPT-2 checkpoint must have been trained with the corpus' tokenizer, every base with the finetuning's."""
    ours = {"gpt2": params.sources.vocabulary, "bpe": "trained on the corpus", "word": "the corpus' words"}
    finetuning = _finetuning_vocabulary(params)
    if params.tokenize.instructions.prompt_style == "chatml" and finetuning not in PRETRAINED:
        yield (
            "tokenize.instructions.prompt_style is chatml, whose special tokens the tokenizer of the instructions "
            f"({finetuning}) lacks; choose alpaca or phi3"
        )
    for key in ("gpt2_sizes", "pretrained"):
        if len(set(names := getattr(params, key))) < len(names):
            yield f"{key} is {names}; each name may occur once; remove the repeated one"
    for size in params.gpt2_sizes:
        theirs, n_tokens = "gpt2-nano" if size == "nano" else "gpt2-124M", published_config(size).vocab_size
        if params.tokenizer.kind != "gpt2" or params.sources.vocabulary != theirs:
            yield (
                f"gpt2_sizes has {size}, whose vocabulary of {n_tokens} tokens differs from the tokenizer's "
                f"({params.tokenizer.kind}: {ours[params.tokenizer.kind]}); set tokenizer.kind to gpt2 and "
                f"sources.vocabulary to {theirs}, or remove the size"
            )


def _corpus_vocabulary(params: Any) -> str:
    return params.sources.vocabulary if params.tokenizer.kind == "gpt2" else "the corpus' own"


def _finetuning_vocabulary(params: Any) -> str:
    is_given = params.tokenize.finetuning_tokenizer == "vocabulary"
    return params.sources.vocabulary if is_given else _corpus_vocabulary(params)


def _base_models(params: Any) -> list[str]:
    return ["pretrain", *(f"gpt2-{size}" for size in params.gpt2_sizes), *params.pretrained]


def _bases(params: Any) -> Iterator[str]:
    """Every base is built, and its vocabulary is that of the messages and instructions."""
    allowed = _base_models(params)
    corpus, finetuning = _corpus_vocabulary(params), _finetuning_vocabulary(params)
    bases = {f"{section}.base": getattr(params, section).base for section in ("finetune_spam", "finetune_instruct")}
    own = params.finetune_instruct.base
    bases |= {f"variants.{name}": it for name, it in params.variants.items() if it in allowed and it != own}
    for key, base in bases.items():
        gpt2 = "gpt2-nano" if base == "gpt2-nano" else "gpt2-124M"
        vocabulary = {"pretrain": corpus}.get(base, base if base in params.pretrained else gpt2)
        if base not in allowed:
            yield (
                f"{key} is {base!r}; allowed are {', '.join(allowed)}; to use another GPT-2, add its size to gpt2_sizes"
            )
        elif vocabulary != finetuning and (base == "pretrain" or base in params.pretrained):
            yield (
                f"{key} is {base!r}, whose vocabulary is {vocabulary}, but messages and instructions have "
                f"{finetuning}; set tokenize.finetuning_tokenizer to {'corpus' if base == 'pretrain' else 'vocabulary'}"
                f"{'' if base == 'pretrain' else f' and sources.vocabulary to {base}'}, or choose another base"
            )


def _variants(params: Any) -> Iterator[str]:
    """Every variant is a model that this params.yaml makes, and `base` is the one that was finetuned."""
    runs = {"finetune_preference": params.preference_runs, "reinforce": params.reinforce_runs}
    finetuned = [ASSISTANT_FOLDER, *(f"{stage}/{name}" for stage, names in runs.items() for name in names)]
    allowed, base = [*_base_models(params), *finetuned], params.finetune_instruct.base
    for name, folder in params.variants.items():
        if folder == base:
            continue  # _bases checks it
        if name == BASE:
            yield (
                f"variants.{BASE} is {folder!r}, but finetune_instruct.base is {base!r}; make them equal, or rename "
                "the variant"
            )
        elif folder not in allowed:
            yield (
                f"variants.{name} is {folder!r}; allowed are {', '.join(allowed)}; choose one of them, remove the "
                "variant, or add the run that makes it"
            )


def _rewards(params: Any) -> Iterator[str]:
    """Every reward model that rewards is trained, and a response that is cut never earns more than one that ends."""
    allowed = [REFERENCE, *(f"{REWARD_MODELS}{name}" for name in params.reward_runs)]
    for name, run in params.reinforce_runs.items():
        if run.reward not in allowed:
            yield (
                f"reinforce_runs.{name}.reward is {run.reward!r}; allowed are {', '.join(allowed)}; choose one, "
                "or add the reward model to reward_runs"
            )
        elif run.reward != REFERENCE:
            run = with_changes(params.reinforce, params.reinforce_runs, "reinforce_runs", name)
            unfinished = run.unfinished_reward
            if unfinished >= 0:
                yield (
                    f"reinforce_runs.{name}.unfinished_reward is {unfinished}, but a reward model gives good responses "
                    "a mean of 0, so the policy would learn not to end; set it well below 0, such as -3.0"
                )


def _pairs(params: Any) -> Iterator[str]:
    """The judge can compare the responses of variants only."""
    named = {name for pair in getattr(params.judge, "pairwise", []) for name in pair}
    for name in sorted(named.difference(params.variants)):
        yield f"judge.pairwise has {name!r}; allowed are the variants {', '.join(params.variants)}; choose two of them"


def pretrained_models(params: Any) -> dict[str, ModelParams]:
    """The model that is pretrained, and its variants."""
    section, ablations = "pretrain_ablations", params.pretrain_ablations
    variants = {f"{section}.{name}": with_changes(params.model, ablations, section, name) for name in ablations}
    return {"pretrain": params.model} | variants


def model_configs(params: Any) -> dict[str, GPTConfig]:
    """The configuration of every model; an unknown vocabulary counts as one token."""
    kind = params.tokenizer.kind
    own = params.sources.vocabulary
    given = PRETRAINED.get(own, published_config("nano" if own == "gpt2-nano" else "124M")).vocab_size
    vocab_size = {"gpt2": given, "bpe": getattr(params.tokenizer, "vocab_size", 1), "word": 1}[kind]
    models = {name: model.config(vocab_size) for name, model in pretrained_models(params).items()}
    models |= {name: PRETRAINED[name] for name in params.pretrained}
    return models | {f"gpt2-{size}": published_config(size) for size in params.gpt2_sizes}


def _contexts(params: Any) -> Iterator[str]:
    """No stage may need a longer context than its model has."""
    lengths = {name: config.context_length for name, config in model_configs(params).items()}
    spam, ablations = params.finetune_spam, params.spam_ablations
    answering = dict.fromkeys((params.finetune_instruct.base, *params.variants.values()))
    wanted = [
        *(("evaluation.context_length", params.evaluation.context_length, name) for name in lengths),
        ("finetune_spam.padding", spam.padding, spam.base),
        *((f"spam_ablations.{name}.padding", varied(spam, ablations, name).padding, spam.base) for name in ablations),
        *(("generate.max_new_tokens", params.generate.max_new_tokens, model) for model in answering),
        *(
            (f"{name}.max_new_tokens", p.max_new_tokens, base)
            for name, base, p in _assistant_trainings(params)
            if isinstance(p, ReinforceParams)
        ),
    ]
    for key, n_tokens, model in wanted:
        if n_tokens != "longest" and n_tokens > lengths.get(model, n_tokens):
            yield f"{key} is {n_tokens}, but {model} has a context of {lengths[model]} tokens; lower it to that or less"


def _steps(params: Any) -> Iterator[str]:
    """Pretraining must have a window and reach its learning rate, even if each byte of the corpus were a token."""
    source, p, n_bytes = params.sources.corpus_name, params.pretrain, max(params.sources.corpus_bytes)
    lengths = {name: model.context_length for name, model in pretrained_models(params).items()}
    lengths = {"model": lengths.pop("pretrain"), "evaluation": params.evaluation.context_length} | lengths
    for key, n_tokens in lengths.items():
        if n_tokens >= n_bytes:
            yield f"{key}.context_length is {n_tokens}, but {source} has at most {n_bytes} tokens; lower it"
    n_steps = pretraining_steps(params, n_bytes)
    if n_steps < max(1, p.warmup_steps):
        yield (
            f"pretrain has at most {n_steps} steps over {source}, even if each of its bytes is a token, of which "
            f"warmup_steps are {p.warmup_steps}, so it never reaches learning_rate; lower warmup_steps, batch_size or "
            "stride, or raise epochs"
        )


def pretraining_steps(params: Any, n_tokens: int) -> int:
    """The steps of pretraining on so many tokens."""
    p, length = params.pretrain, params.model.context_length
    return int(p.epochs * (max(0, n_tokens - length) // p.stride + 1) / p.batch_size)


def _ranks(params: Any) -> Iterator[str]:
    """A LoRA matrix of a rank above the width holds more numbers than the weight that it adapts."""
    spam, instruct = params.finetune_spam, params.finetune_instruct
    trainings = [("finetune_spam", spam.base, spam), ("finetune_instruct", instruct.base, instruct)]
    for section, base, p in [*trainings, *_assistant_trainings(params)]:
        config = model_configs(params).get(base)
        if p.lora and config and p.lora.rank > config.emb_dim:
            yield f"{section}.lora.rank is {p.lora.rank}, but {base} has a width of {config.emb_dim}; lower it"


def _assistant_trainings(params: Any) -> Iterator[tuple[str, str, Any]]:
    """The name, base and parameters of each run that begins with the assistant, or of a section without runs."""
    base = params.finetune_instruct.base
    for section in ("finetune_preference", "reward_model", "reinforce"):
        names = ITEMS[section]
        shared, runs = getattr(params, section), getattr(params, names)
        varied_runs = [(f"{names}.{name}", base, with_changes(shared, runs, names, name)) for name in runs]
        yield from varied_runs or [(section, base, shared)]


def _memory(params: Any) -> Iterator[str]:
    """No training may need more than the machine has, counting only what it certainly holds at once.

    A text to finetune on may have one token.
    """
    models, spam, instruct = model_configs(params), params.finetune_spam, params.finetune_instruct
    trainings = [
        *(("pretrain", name, params.pretrain, m.context_length, True) for name, m in pretrained_models(params).items()),
        ("finetune_spam", spam.base, spam, 1, spam.trainable == "all" and not spam.lora),
        ("finetune_instruct", instruct.base, instruct, 1, not instruct.lora),
        *((name, base, p, 1, not p.lora) for name, base, p in _assistant_trainings(params) if "." in name),
    ]
    rewards = {f"reinforce_runs.{name}": run.reward for name, run in params.reinforce_runs.items()}
    for section, base, p, n_tokens, all_train in trainings:
        if not (config := models.get(base)):
            continue
        if section.startswith(("finetune_spam", "reward_runs")):  # without a head of tokens
            config = config.model_copy(update={"tied_head": True})
        is_rated = rewards.get(section, REFERENCE) != REFERENCE
        training = Training(section, base, config, p, n_tokens, all_train, is_rated)
        yield from shortage(training, resolve_device(params.device, params.precision), params.compile)
