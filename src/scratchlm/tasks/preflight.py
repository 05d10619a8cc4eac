"""Checks before any work starts: do the sections of params.yaml fit together? Each section checks itself."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scratchlm.model.config import published_config
from scratchlm.run.device import resolve_device
from scratchlm.run.errors import UserError
from scratchlm.tasks.spam import varied


def check_together(params: Any) -> None:
    """Raises UserError with one sentence for each combination in `params`, all of params.yaml, that cannot work."""
    resolve_device(params.device, params.precision)
    params.model.config(vocab_size=1)
    mistakes = [*_vocabularies(params), *_bases(params), *_contexts(params)]
    for variant in params.spam_ablations:
        if not re.fullmatch(r"[\w-]+", variant):
            mistakes.append(f"spam_ablations has a variant {variant!r}; name it with letters, digits, _ and - only")
    if mistakes:
        raise UserError("\n".join(mistakes))


def leftover_metrics(params: Any, loaded: Path, ablated: Path) -> list[Path]:
    """Metrics of models and ablations that params.yaml no longer names: no stage reads them, and nothing deletes them.

    loaded, ablated: the folders with one JSON file per size in gpt2_sizes, and per variant in spam_ablations.
    """
    return [
        path
        for folder, names in ((loaded, params.gpt2_sizes), (ablated, params.spam_ablations))
        for path in sorted(folder.glob("*.json"))
        if path.stem not in names
    ]


def _vocabularies(params: Any) -> Iterator[str]:
    """Every GPT-2 checkpoint that is loaded must have been trained with the tokenizer in use."""
    ours = {"gpt2": params.sources.vocabulary, "bpe": "trained on the corpus", "word": "the corpus' words"}
    if len(set(params.gpt2_sizes)) < len(params.gpt2_sizes):
        yield f"gpt2_sizes is {params.gpt2_sizes}; each size may occur once; remove the repeated one"
    for size in params.gpt2_sizes:
        theirs, n_tokens = "gpt2-nano" if size == "nano" else "gpt2-124M", published_config(size).vocab_size
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
    """No stage may need a longer context than its model has."""
    lengths = {"pretrain": params.model.context_length}
    lengths |= {f"gpt2-{size}": published_config(size).context_length for size in params.gpt2_sizes}
    spam, ablations = params.finetune_spam, params.spam_ablations
    wanted = [
        *(("evaluation.context_length", params.evaluation.context_length, name) for name in lengths),
        ("finetune_spam.padding", spam.padding, spam.base),
        *((f"spam_ablations.{name}.padding", varied(spam, ablations, name).padding, spam.base) for name in ablations),
        ("generate.max_new_tokens", params.generate.max_new_tokens, params.finetune_instruct.base),
    ]
    for key, n_tokens, model in wanted:
        if n_tokens != "longest" and n_tokens > lengths.get(model, n_tokens):
            yield f"{key} is {n_tokens}, but {model} has a context of {lengths[model]} tokens; lower it to that or less"
