"""The per-example records of each metric, and the check that two revisions measured the same examples."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from scratchlm.compare.revision import Revision
from scratchlm.judge.overlap import normalise
from scratchlm.run.errors import UserError
from scratchlm.tasks.bootstrap import Auroc, Macro, Ratio, Statistic, observed
from scratchlm.tasks.variants import RESERVED

LOWER_IS_BETTER = {"loss", "perplexity", "bits_per_byte", "test_loss", "calibration_error"}
DERIVED = r"(_low|_high)$|\.confusion\."
TASKS = "sources.instructions, tokenize.instructions"
ANSWERED = f"{TASKS} and generate.split"
RESPONSES, JUDGEMENTS = r"data/responses/generate/\1.parquet", "data/responses/judge.parquet"
VARIANT = f"(?!{'|'.join(RESERVED)})(.+)"
ROUNDING = 1e-4  # relative: far above the rounding of metrics files, far below the changes of another build

ACTUAL, PREDICTED = "is ", "called "  # begin the names of columns, before that of a class

Columns = Mapping[str, np.ndarray]


class Records(NamedTuple):
    """The records of a family at one revision.

    examples: by id, the content that defines the example. columns: (N,) each, in the same order.
    """

    examples: dict[str, Any]
    columns: Columns


class Family(NamedTuple):
    """The metrics that come from one set of records.

    prefix: of its metrics' names. paths: of the records. examples: the word for them in messages. depends_on: the
    parameters that determine the test set. records: reads them. statistics: columns and tracked values by name -> a
    statistic by name.
    """

    prefix: str
    paths: tuple[str, ...]
    names: tuple[str, ...]
    examples: str
    depends_on: str
    records: Callable[[Revision, "Family"], Records]
    statistics: Callable[[Columns, Mapping[str, float]], dict[str, Statistic]]

    def read(self, revision: Revision) -> Records:
        return self.records(revision, self)


class Unpaired(UserError):
    """The records of two revisions cannot be paired; the sentence says why."""


def better(metric: str, difference: float) -> bool:
    """Whether a change of this metric by `difference` is an improvement."""
    return (difference < 0) == (metric.rpartition(".")[2] in LOWER_IS_BETTER)


def is_derived(metric: str) -> bool:
    """Whether a metric repeats another: it is an end of its interval, or a count of its confusion matrix."""
    return bool(re.search(DERIVED, metric))


def pair_up(family: Family, first: Records, second: Records, names: tuple[str, str]) -> tuple[Columns, Columns, int]:
    """Return the columns of both in the order of the first, and the number of examples left out as one has no value.

    names: of the revisions. Raises Unpaired if the two are not of the same examples.
    """
    if first.examples != second.examples:
        other = second.examples
        shared = sum(name in other and other[name] == content for name, content in first.examples.items())
        raise Unpaired(
            f"{family.prefix} is measured on different {family.examples}: {len(first.examples)} at {names[0]}, "
            f"{len(second.examples)} at {names[1]}, {shared} the same; to compare, build both with the same "
            f"{family.depends_on}"
        )
    index = {name: i for i, name in enumerate(second.examples)}
    order = [index[name] for name in first.examples]
    one, other = first.columns, {name: column[order] for name, column in second.columns.items()}
    usable = np.all([np.isfinite(column) for column in (*one.values(), *other.values())], axis=0)
    if not usable.any():
        raise Unpaired(f"no example of {family.prefix} has a value at both {names[0]} and {names[1]}; rebuild them")
    kept = [{name: column[usable] for name, column in columns.items()} for columns in (one, other)]
    return kept[0], kept[1], int((~usable).sum())


def check_records(family: Family, records: Records, tracked: Mapping[str, float], revision: Revision) -> None:
    """Raises Unpaired if the tracked values do not follow from the records, as the two were not built together."""
    usable = np.all([np.isfinite(column) for column in records.columns.values()], axis=0)
    columns = {name: column[usable] for name, column in records.columns.items()}
    for name, statistic in family.statistics(columns, tracked).items():
        value = observed(statistic) if usable.any() else np.nan
        if name in tracked and np.isfinite(value) and not np.isclose(value, tracked[name], rtol=ROUNDING):
            raise Unpaired(
                f"the records of {family.prefix} at {revision.name} give {name} {value:.6g}, but its metrics file has "
                f"{tracked[name]:.6g}: they were not built together; rebuild: {revision.rebuild}"
            )


def _records_of(*names: str) -> Callable[[Revision, "Family"], Records]:
    """Return the reader of a table with these columns, and with ids that include a hash of the example's content."""

    def read(revision: Revision, family: Family) -> Records:
        table = revision.table(family.paths[0])
        columns = {name: table[name].to_numpy().astype(float) for name in names}
        return Records(dict.fromkeys(table["id"].to_pylist()), columns)

    return read


def _corpus_statistics(columns: Columns, tracked: Mapping[str, float]) -> dict[str, Statistic]:
    sums, counts = columns["loss_nats"], columns["scored_tokens"]
    bits_per_nat = tracked["bits_per_byte"] / tracked["loss"]  # includes tokens per byte: one factor for all windows
    return {
        "loss": Ratio(sums, counts),
        "perplexity": Ratio(sums, counts, np.exp),
        "bits_per_byte": Ratio(sums, counts, lambda loss: bits_per_nat * loss),
    }


def _predictions(revision: Revision, family: Family) -> Records:
    """Records of PREDICTION_SCHEMA."""
    table = revision.table(family.paths[0])
    if "probability" in table.column_names:  # as before there were other classes than ham and spam
        spam, named = table["probability"].to_numpy(), np.array(["ham", "spam"])
        probabilities, classes = np.stack([1 - spam, spam], axis=1), named.tolist()
        label, predicted = (named[table[name].to_numpy()] for name in ("label", "predicted"))
    else:
        found = table["probabilities"].combine_chunks()
        classes = list(dict.fromkeys(found.keys.to_pylist()))
        probabilities = found.items.to_numpy().reshape(len(table), len(classes))
        label, predicted = (np.array(table[name].to_pylist()) for name in ("label", "predicted"))
    texts = table["text"].to_pylist()
    content = [(name, text, tuple(classes)) for name, text in zip(label.tolist(), texts, strict=True)]
    examples = dict(zip(table["id"].to_pylist(), content, strict=True))
    return Records(examples, class_columns(label, predicted, probabilities, classes))


def class_columns(label: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray, classes: list[str]) -> Columns:
    """Columns for the statistics of a classifier. label, predicted: (N,) names. probabilities: (N, K)."""
    is_class = {name: label == name for name in classes}
    columns = {ACTUAL + name: is_class[name].astype(float) for name in classes}
    columns |= {PREDICTED + name: (predicted == name).astype(float) for name in classes}
    columns["of the label"] = probabilities[np.stack([*is_class.values()], axis=1)]
    columns["of the second class"] = probabilities[:, 1]
    return columns


def _classification(columns: Columns, tracked: Mapping[str, float]) -> dict[str, Statistic]:
    classes = [name.removeprefix(ACTUAL) for name in columns if name.startswith(ACTUAL)]
    actual, predicted = (np.stack([columns[side + name] for name in classes]) for side in (ACTUAL, PREDICTED))
    given, ones = columns["of the label"], np.ones(actual.shape[1])
    right = actual * predicted
    parts = {"precision": (right, predicted), "recall": (right, actual), "f1": (2 * right, predicted + actual)}
    of_class = [
        {name: Ratio(above[i], below[i], proportion=True) for name, (above, below) in parts.items()}
        for i in range(len(classes))
    ]
    tiny = np.finfo(float).eps  # scikit-learn's log_loss clips here too
    found: dict[str, Statistic] = {
        "accuracy": Ratio(right.sum(axis=0), ones, proportion=True),
        "loss": Ratio(-np.log(np.clip(given, tiny, 1)), ones),
    }
    if len(classes) == 2:
        return found | of_class[1] | {"auroc": Auroc(actual[1], columns["of the second class"])}
    found |= {f"macro_{name}": Macro(above, below, actual) for name, (above, below) in parts.items()}
    named = zip(classes, of_class, strict=True)
    return found | {f"classes.{name}.{key}": it for name, ratios in named for key, it in ratios.items()}


def _preferences(columns: Columns, tracked: Mapping[str, float]) -> dict[str, Statistic]:
    margins, ones = columns["chosen_reward"] - columns["rejected_reward"], np.ones_like(columns["loss"])
    return {
        "loss": Ratio(columns["loss"], ones),
        "accuracy": Ratio(np.heaviside(margins, 0.5), ones, proportion=True),
        "margin": Ratio(margins, ones),
    }


def _gains(columns: Columns, tracked: Mapping[str, float]) -> dict[str, Statistic]:
    rewards, ones = columns["reward"], np.ones_like(columns["reward"])
    return {"reward": Ratio(rewards, ones), "gain": Ratio(rewards - columns["reward_before"], ones)}


def _responses(revision: Revision, family: Family) -> Records:
    rows = revision.table(family.paths[0]).to_pylist()
    exact = [normalise(row["response"]) == normalise(row["output"]) for row in rows]
    columns = {"finished": [row["finished"] for row in rows], "exact_matches": exact}
    return Records(tasks_of(rows), {name: np.array(column, float) for name, column in columns.items()})


def _counts(columns: Columns, tracked: Mapping[str, float]) -> dict[str, Statistic]:
    """Each number of right answers, as a proportion times their number, so that the bootstrap treats it as one."""
    n = len(columns["finished"])
    return {name: Ratio(right, np.ones(n), lambda share: n * share, proportion=True) for name, right in columns.items()}


def _judgements(revision: Revision, family: Family) -> Records:
    tasks = tasks_of(revision.table(family.paths[0]).to_pylist())
    variant = family.prefix.removeprefix("judge.")
    rows = revision.table(JUDGEMENTS).to_pylist()
    scores = {row["id"]: row["score"] for row in rows if row["model"] == variant}
    return Records(tasks, {"score": np.array([scores.get(name) for name in tasks], dtype=float)})


def tasks_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the instruction, input and reference output of each response, by its id."""
    return {row["id"]: (row["instruction"], row["input"], row["output"]) for row in rows}


LOSSES = _records_of("loss_nats", "scored_tokens")
PRETRAIN = Family(
    r"pretrain\.val", ("data/losses/pretrain.parquet",), ("loss", "perplexity", "bits_per_byte"), "windows",
    "sources.corpus, tokenizer, tokenize.corpus and evaluation.context_length", LOSSES, _corpus_statistics,
)  # fmt: skip
PREFERENCE = Family(
    r"finetune_preference/(.+)\.test", (r"data/losses/finetune_preference/\1.parquet",),
    ("loss", "accuracy", "margin"), "pairs", "sources.preferences and tokenize.preferences",
    _records_of("loss", "chosen_reward", "rejected_reward"), _preferences,
)  # fmt: skip
SPAM = Family(
    r"finetune_spam\.test", ("data/predictions/finetune_spam.parquet",),
    ("accuracy", "precision", "recall", "f1", "auroc", "macro_precision", "macro_recall", "macro_f1", "loss"),
    "messages", "sources.messages, tokenize.messages and seed", _predictions, _classification,
)  # fmt: skip
FAMILIES = (  # prefix is a pattern, and paths are expansions of it
    PRETRAIN,
    PRETRAIN._replace(prefix=r"ablate_pretrain/(.+)\.val", paths=(r"data/losses/ablate_pretrain/\1.parquet",)),
    PRETRAIN._replace(prefix=r"load_gpt2/(.+)\.val", paths=(r"data/losses/gpt2-\1.parquet",)),
    PRETRAIN._replace(prefix=r"load_pretrained/(.+)\.val", paths=(r"data/losses/\1.parquet",)),
    SPAM,
    SPAM._replace(prefix=r"baseline_spam\.test", paths=("data/predictions/baseline_spam.parquet",)),
    SPAM._replace(prefix=r"ablate_spam/([\w-]+)\.test", paths=(r"data/predictions/ablate_spam/\1.parquet",)),
    Family(
        r"finetune_instruct\.after", ("data/losses/finetune_instruct.parquet",), ("test_loss",), "responses",
        f"{TASKS}, tokenizer and length of context", LOSSES,
        lambda columns, _: {"test_loss": Ratio(columns["loss_nats"], columns["scored_tokens"])},
    ),
    PREFERENCE,
    PREFERENCE._replace(prefix=r"reward_model/(.+)\.test", paths=(r"data/losses/reward_model/\1.parquet",)),
    Family(
        r"reinforce/(.+)\.test", (r"data/losses/reinforce/\1.parquet",), ("reward", "gain"), "prompts",
        "sources.preferences and tokenize.preferences", _records_of("reward", "reward_before"), _gains,
    ),
    Family(
        r"generate/(.+)", (RESPONSES,), ("finished", "exact_matches"), "responses", ANSWERED,
        _responses, _counts,
    ),
    Family(
        rf"judge\.{VARIANT}", (RESPONSES, JUDGEMENTS), ("mean_score",), "responses", ANSWERED,
        _judgements, lambda columns, _: {"mean_score": Ratio(columns["score"], np.ones_like(columns["score"]))},
    ),
)  # fmt: skip


def families(metrics: Iterable[str]) -> list[Family]:
    """Return the families among metrics with names like load_gpt2/nano.val.loss, in the order of the pipeline."""
    present = set(metrics)
    prefixes = sorted({name.rpartition(".")[0] for name in present})
    return [
        family._replace(
            prefix=prefix,
            paths=tuple(match.expand(path) for path in family.paths),
            names=(*family.names, *_of_classes(present, prefix)),
        )
        for family in FAMILIES
        for prefix in prefixes
        if (match := re.fullmatch(family.prefix, prefix)) and {f"{prefix}.{name}" for name in family.names} & present
    ]


def _of_classes(metrics: Iterable[str], prefix: str) -> list[str]:
    """The names of the metrics of single classes, without the prefix. They depend on the data."""
    names = (name.removeprefix(f"{prefix}.") for name in metrics if name.startswith(f"{prefix}."))
    return sorted(name for name in names if re.fullmatch(r"classes\..+\.(precision|recall|f1)", name))
