"""What must hold before any work starts: sections of params.yaml that fit together, folders without others' outputs.

Each section checks itself when it is read.
"""

import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, get_args

from scratchlm.data.catalogue import GPT2Size
from scratchlm.model.config import GPT2_CONTEXT_LENGTH, GPT2_VOCAB_SIZE
from scratchlm.runtime import resolve_device
from scratchlm.training.spam import varied

NANO_VOCAB_SIZE, NANO_CONTEXT_LENGTH = 1024, 256  # the sample's checkpoint, data/sample/README.md


def check_together(params: Any) -> None:
    """Raises ValueError with one sentence for each combination that cannot work.

    params: all of params.yaml, each section of its own type.
    """
    resolve_device(params.device)
    params.model.config(vocab_size=1)
    mistakes = [
        *_vocabularies(params),
        *_bases(params),
        *_contexts(params),
    ]
    for variant in params.spam_ablations:
        if not re.fullmatch(r"[\w-]+", variant):
            mistakes.append(f"spam_ablations has a variant {variant!r}; name it with letters, digits, _ and - only")
    if mistakes:
        raise ValueError("\n".join(mistakes))


def clear_away_others(params: Any, models: Path, loaded: Path, ablated: Path) -> None:
    """Delete what another params.yaml left in folders that report depends on, where it would change their hash.

    loaded, ablated: metrics of the loaded models and of the ablations. Raises ValueError, before anything is deleted,
    naming what is in `models` and no stage made.
    """
    trained = {"pretrain", "finetune_spam", "finetune_instruct"}
    ours = trained.union(f"gpt2-{size}" for size in get_args(GPT2Size))
    for path in sorted(models.glob("[!.]*")):
        if path.name not in ours:
            raise ValueError(
                f"{path} is not an output of this pipeline; move it to another folder, because the report depends on "
                f"all that {models} holds"
            )
    _keep_only(models, trained.union(f"gpt2-{size}" for size in params.gpt2_sizes))
    _keep_only(loaded, params.gpt2_sizes)
    _keep_only(ablated, params.spam_ablations)


def _keep_only(folder: Path, names: Collection[str]) -> None:
    """names: without endings."""
    for path in folder.glob("*"):
        if path.stem not in names:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _vocabularies(params: Any) -> Iterator[str]:
    """Every GPT-2 checkpoint that is loaded must have been trained with the tokenizer in use."""
    ours = {"gpt2": params.sources.vocabulary, "bpe": "trained on the corpus", "word": "the corpus' words"}
    if len(set(params.gpt2_sizes)) < len(params.gpt2_sizes):
        yield f"gpt2_sizes is {params.gpt2_sizes}; each size may stand in it once, remove the repeated one"
    for size in params.gpt2_sizes:
        theirs, n_tokens = ("gpt2-nano", NANO_VOCAB_SIZE) if size == "nano" else ("gpt2-124M", GPT2_VOCAB_SIZE)
        if params.tokenizer.kind != "gpt2" or params.sources.vocabulary != theirs:
            yield (
                f"gpt2_sizes has {size}, whose vocabulary of {n_tokens} tokens differs from the tokenizer's "
                f"({params.tokenizer.kind}: {ours[params.tokenizer.kind]}); set tokenizer.kind to gpt2 and "
                f"sources.vocabulary to {theirs}, or remove the size"
            )


def _bases(params: Any) -> Iterator[str]:
    allowed = ["pretrain", *(f"gpt2-{size}" for size in params.gpt2_sizes)]
    for section in ("finetune_spam", "finetune_instruct"):
        base = getattr(params, section).base
        if base not in allowed:
            yield (
                f"{section}.base is {base!r}; allowed are {', '.join(allowed)}; to use another GPT-2, "
                "add its size to gpt2_sizes"
            )


def _contexts(params: Any) -> Iterator[str]:
    """Nothing may ask for more positions than the model has that it meets."""
    lengths = {"pretrain": params.model.context_length}
    for size in params.gpt2_sizes:
        lengths[f"gpt2-{size}"] = NANO_CONTEXT_LENGTH if size == "nano" else GPT2_CONTEXT_LENGTH
    wanted = [("evaluation.context_length", params.evaluation.context_length, name) for name in lengths]
    spam, instruct = params.finetune_spam, params.finetune_instruct
    if isinstance(spam.padding, int):
        wanted.append(("finetune_spam.padding", spam.padding, spam.base))
    for name in params.spam_ablations:
        padding = varied(spam, params.spam_ablations, name).padding
        if isinstance(padding, int):
            wanted.append((f"spam_ablations.{name}.padding", padding, spam.base))
    wanted.append(("generate.max_new_tokens", params.generate.max_new_tokens, instruct.base))
    for key, n_tokens, model in wanted:
        if n_tokens > lengths.get(model, n_tokens):
            yield f"{key} is {n_tokens}, but {model} has a context of {lengths[model]} tokens; lower it to that or less"
