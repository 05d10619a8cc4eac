"""The model card of an exported model: what it is, how to use it, its data, results and lineage."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scratchlm.formats.names import architecture
from scratchlm.model.config import GPTConfig
from scratchlm.report.origin import Origin
from scratchlm.report.tables import format_number
from scratchlm.report.template import read_template
from scratchlm.run.display import markdown

TEMPLATE = Path(__file__).with_name("card.md.jinja")
LICENCES = ("apache-2.0", "cc-by-4.0", "cc0-1.0")  # identifiers of Hugging Face's hub; any other is `other` there
ARCHITECTURES = {"gpt2": "GPT-2", "llama": "Llama", "qwen2": "Qwen2"}


class Subject(NamedTuple):
    """The model that is exported. classes: of a classifier, else none. is_chat: whether it has a chat template.

    base: of an adapter, the name of its base model; its parameters are those that LoRA trained. padding_id: of the
    adapter of a classifier or reward model, what transformers calls pad_token_id. logit_offset: of a reward model,
    what to subtract from its logits, else None.
    """

    name: str
    config: GPTConfig
    parameters: int
    classes: Sequence[str]
    is_chat: bool
    base: str | None = None
    padding_id: int | None = None
    logit_offset: float | None = None

    @property
    def is_reward(self) -> bool:
        """Whether it is a reward model."""
        return self.logit_offset is not None

    @property
    def about(self) -> str:
        """One sentence."""
        kind = "A classifier of texts" if self.classes else "An assistant" if self.is_chat else "A language model"
        if self.is_reward:
            kind = "A reward model"
        if self.base:
            kind = "A LoRA adapter for " + kind[0].lower() + kind[1:]
        return f"{kind}, built like {ARCHITECTURES[architecture(self.config)]}."

    @property
    def auto_class(self) -> str:
        """The class of transformers that loads it."""
        return f"AutoModelFor{'SequenceClassification' if self.classes or self.is_reward else 'CausalLM'}"


def model_card(subject: Subject, origin: Origin | None, revision: str | None, is_changed: bool) -> str:
    """Return the README.md of an exported folder, the same text for the same model and revision.

    revision: of git; None if there is none. is_changed: whether the dvc.lock of the model is not the revision's.
    """
    return read_template(TEMPLATE, {"markdown": markdown, "number": "{:,}".format}).render(
        subject._asdict(), about=subject.about, auto=subject.auto_class, is_reward=subject.is_reward,
        labels=dict(enumerate(subject.classes)), licence=licence(origin), origin=origin, revision=revision,
        is_changed=is_changed, measures=list(_measures(origin.metrics)) if origin else [],
    )  # fmt: skip


def licence(origin: Origin | None) -> str | None:
    """Return the identifier of the licence that all data have, `other` if they differ, None if they are not known."""
    if origin is None:
        return None
    found = {source.licence.partition(" (")[0].lower().replace(" ", "-") for source in origin.sources}
    return found.pop() if len(found) == 1 and found <= set(LICENCES) else "other"


def licence_text(origin: Origin) -> str:
    """Return the licence of the data of each source, one line each."""
    return "\n".join(f"Data {source.name}: {source.licence}. {source.citation}" for source in origin.sources)


def _measures(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and interval. Its ends, such as mean_low of mean_score, have no line of their own."""
    for name, value in metrics.items():
        if name.removesuffix("_low").removesuffix("_high") == name:
            stem = name.removesuffix("_score")
            ends = [format_number(metrics[end]) for end in (f"{stem}_low", f"{stem}_high") if end in metrics]
            yield name, format_number(value), " to ".join(ends)
