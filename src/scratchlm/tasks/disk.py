"""The steps and the disk that a run takes, from its parameters alone, and whether there is as much disk."""

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from scratchlm.data.catalogue import ASSUMED_BYTES, wanted_files
from scratchlm.data.corpus import NearDuplicates
from scratchlm.run.errors import UserError
from scratchlm.tasks.preflight import model_configs, pretrained_models, pretraining_steps

NUMBER_BYTES = 4  # of a float32 weight, or of a token
CHECKPOINT_NUMBERS = 3  # a weight and AdamW's two moments
BYTES_PER_TOKEN = (4, 2)  # of English, from vocabularies of 50,257 tokens or of words down to some hundred tokens
DOCUMENT_BYTES = 100  # of the text of a document, on average, at least: a sentence


class DiskNeeds(NamedTuple):
    """Bytes that a run writes into the project.

    downloads: as far as the catalogue has sizes. models: of float32. tokens: at most, if each byte of the corpus were
    one. temporary: at most: the map of the tokens, and the two checkpoints that exist while one replaces the other; or,
    earlier, the signatures of near duplicates, or a wheel that holds a download.
    """

    downloads: int
    models: int
    tokens: int
    temporary: int

    @property
    def least(self) -> int:
        return self.downloads + self.models

    @property
    def artifacts(self) -> int:
        """What DVC's cache gets, at most."""
        return self.downloads + self.models + self.tokens


def disk_needs(params: Any) -> DiskNeeds:
    """What a run of all of params.yaml needs. The ablations keep no model, runs after the assistant one each."""
    models, spam, instruct = model_configs(params), params.finetune_spam, params.finetune_instruct
    headless = [models[spam.base], *[models[instruct.base]] * len(params.reward_runs)]  # have no head of tokens
    backbones = [config.model_copy(update={"tied_head": True}) for config in headless]
    variants = [config.n_parameters for name, config in models.items() if name.startswith("pretrain_ablations.")]
    assistants = [models[instruct.base]] * (1 + len(params.preference_runs) + len(params.reinforce_runs))
    trained = [config.n_parameters for config in (models["pretrain"], *backbones, *assistants)]
    names = [*(f"gpt2-{size}" for size in params.gpt2_sizes), *params.pretrained]
    loaded = [models[name].n_parameters for name in names]
    tokens = NUMBER_BYTES * max(params.sources.corpus_bytes)
    files = [file for _, file in wanted_files(params.sources, params.gpt2_sizes, params.pretrained)]
    return DiskNeeds(
        sum(file.size_bytes or 0 for file in files),
        NUMBER_BYTES * (sum(trained) + sum(loaded)),
        tokens,
        max(
            tokens + 2 * CHECKPOINT_NUMBERS * NUMBER_BYTES * max(trained + variants),
            _signature_bytes(params),
            *(file.wheel.size_bytes if file.wheel else 0 for file in files),
        ),
    )


def check_disk(needs: DiskNeeds, data: Path, dvc: Path) -> str | None:
    """Return a warning if a disk may be too small, or None.

    data: the folder of the artifacts; a run replaces what it holds. dvc: the folder .dvc. The cache gets a copy of each
    artifact, which takes no space where the file system shares blocks or DVC links files.
    Raises UserError if the project's disk is certainly too small, or that of an empty cache.
    """
    from dvc.config import Config  # takes a moment

    settings = Config(os.fspath(dvc)).get("cache", {})
    cache = Path(settings.get("dir", dvc / "cache"))
    project, store = _existing(data), _existing(cache)
    there = sum(path.stat().st_size for path in data.rglob("*") if path.is_file())
    is_linked = any(kind in settings.get("type", "") for kind in ("hardlink", "symlink"))
    bounds = {project: (0 if is_linked else needs.least, needs.artifacts + needs.temporary)}
    if project.stat().st_dev == store.stat().st_dev:
        bounds[project] = (bounds[project][0], bounds[project][1] + needs.artifacts - there)
    else:  # a cache with objects may have all that is needed
        bounds[store] = (0 if (cache / "files").exists() else needs.least, needs.artifacts)
    for place, (least, most) in bounds.items():
        free = shutil.disk_usage(place).free
        if free < least - there:
            raise UserError(
                f"downloads and models need at least {_mb(least - there)} of disk, but {place} has {_mb(free)} free; "
                "free some space, move the project or DVC's cache (`dvc cache dir`) to a larger disk, or choose "
                "smaller models"
            )
        if free < most - there:
            return f"the run may need up to {_mb(most - there)} of disk, but {place} has {_mb(free)} free"
    return None


class Steps(NamedTuple):
    """Optimizer steps of pretraining and its variants.

    low: with the least text that compressed files may hold, and the most bytes per token of BYTES_PER_TOKEN. high: with
    the most text and the fewest bytes per token. most: with one token per byte of the most text.
    """

    low: int
    high: int
    most: int


def planned_steps(params: Any) -> Steps:
    """Return the estimates for params.yaml."""
    n_models, train_fraction = len(pretrained_models(params)), params.tokenize.corpus.train_fraction
    bounds = params.sources.corpus_bytes
    tokens = (int(train_fraction * n / each) for n, each in zip(bounds, BYTES_PER_TOKEN, strict=True))
    return Steps(*(n_models * pretraining_steps(params, n_tokens) for n_tokens in (*tokens, bounds[1])))


def plan(params: Any, needs: DiskNeeds, steps: Steps) -> str:
    """Return what a run takes, in one sentence. Its speed is not known before it, so no time is estimated."""
    least, most = params.sources.corpus_bytes
    size = f"{_mb(least)} to {_mb(most)}" if least < most else _mb(most) if most == ASSUMED_BYTES else ""
    size = size and f" and a corpus of {size}, whose size is assumed"
    return (
        f"about {steps.low:,} to {steps.high:,} steps of pretraining (at most {steps.most:,}), of "
        f"{params.pretrain.batch_size * params.model.context_length:,} tokens each, an estimate for "
        f"{' to '.join(map(str, BYTES_PER_TOKEN))} bytes per token, as in English{size}; {_mb(needs.least)} of disk "
        f"for downloads and models, and as much for their copies in DVC's cache; up to {_mb(needs.tokens)} for tokens "
        f"and {_mb(needs.temporary)} for checkpoints and other temporary files"
    )


def _signature_bytes(params: Any) -> int:
    """The bytes of the signatures of near duplicates, if documents have DOCUMENT_BYTES on average."""
    if not isinstance(params.tokenize.corpus.deduplicate, NearDuplicates):
        return 0
    from scratchlm.data.near_duplicates import N_VALUES  # with packages that take a moment to import

    return NUMBER_BYTES * N_VALUES * max(params.sources.corpus_bytes) // DOCUMENT_BYTES


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.{0 if n_bytes >= 1e7 else 1}f} MB"
