"""Compare revisions: every tracked metric at both, and whether the difference is more than noise."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from scratchlm.compare.builds import kept_builds
from scratchlm.compare.changes import Build, Changes, changes, differing, read_build
from scratchlm.compare.processors import Arithmetic, tell_apart
from scratchlm.compare.records import Family, Unpaired, better, check_records, families, pair_up
from scratchlm.compare.revision import WORKSPACE, MissingArtifact, Revision
from scratchlm.run.errors import UserError
from scratchlm.run.nested import flattened
from scratchlm.tasks.bootstrap import PairedDifference, paired_differences

BETTER, WORSE = "better", "worse"
NO_EVIDENCE = "no evidence of a difference"
SAME = "the same on every example"
NOT_COMPARED = "not compared"


class Row(NamedTuple):
    """One metric of two revisions, or of two variants.

    verdict: one of the texts above; empty where the metric has no per-example records. interval, needed: as in
    PairedDifference; examples: the number of pairs. note: why it was not compared, or what was left out.
    """

    metric: str
    first: float | None
    second: float | None
    difference: float | None
    verdict: str = ""
    interval: tuple[float, float] | None = None
    examples: int | None = None
    needed: int | None = None
    note: str = ""


class Variant(NamedTuple):
    """A variant of the assistant at a revision."""

    name: str
    revision: Revision

    def __str__(self) -> str:
        return f"{self.name} of {self.revision}"


class Comparison(NamedTuple):
    """A revision or variant (second), and the baseline. rows: those with a verdict first. warnings: sentences."""

    first: Revision | Variant
    second: Revision | Variant
    rows: list[Row]
    changes: Changes
    warnings: list[str]


class Built(NamedTuple):
    """A revision, the content of its metrics files, the numbers among it by name, and what it was built from.

    arithmetic: by metrics file, that of all stages behind it.
    """

    revision: Revision
    numbers: dict[str, float]
    metrics: dict[str, Any]
    build: Build
    arithmetic: dict[str, frozenset[Arithmetic]]


class Side(NamedTuple):
    """One side of a comparison of records: a family of metrics at a build, and the name of the side in messages."""

    family: Family
    built: Built
    name: str

    def value(self, metric: str) -> float | None:
        return self.built.numbers.get(f"{self.family.prefix}.{metric}")


def compare_revisions(names: Sequence[str]) -> list[Comparison]:
    """Compare each revision with the first one, the baseline; a single one is the baseline of the workspace.

    Of a revision that was also built here, the build is taken that can be compared in the most metrics.
    Raises UserError if a revision is unknown or has no metrics.
    """
    if len(names) == 1:
        names = [*names, WORKSPACE]
    baseline, *others = (read_all(Revision(name)) for name in names)
    return [_best(baseline, other) for other in others]


def _best(first: Sequence[Built], second: Sequence[Built]) -> Comparison:
    """Compare two of the builds: the first pair that leaves the fewest metrics uncompared, and then warnings."""
    found: dict[tuple[int, int], Comparison] = {}
    for pair in itertools.product(first, second):
        comparison = _compare(*pair)
        faults = n_faults(comparison)
        found.setdefault(faults, comparison)
        if not any(faults):
            break
    return found[min(found)]


def n_faults(comparison: Comparison) -> tuple[int, int]:
    """Return how many metrics could not be compared, and how many warnings there are."""
    return sum(row.verdict == NOT_COMPARED for row in comparison.rows), len(comparison.warnings)


def read_all(revision: Revision) -> list[Built]:
    """Read the results of a revision as committed, and of its builds that were kept here."""
    kept = kept_builds(revision.root, revision.commit) if revision.commit else []
    builds = [Revision(revision.name, build=commit, where=where) for commit, where in kept]
    found = [_read(each, metrics) for each in (revision, *builds) if (metrics := each.metrics())]
    if not found:
        raise UserError(f"{revision.name} has no metrics; build it: {revision.rebuild}")
    return found


def _read(revision: Revision, metrics: dict[str, Any]) -> Built:
    flat = {f"{file}.{key}": value for file, values in metrics.items() for key, value in flattened(values).items()}
    numbers = {name: value for name, value in flat.items() if isinstance(value, int | float)}
    return Built(revision, numbers, metrics, read_build(revision), revision.arithmetic(metrics))


def _compare(first: Built, second: Built) -> Comparison:
    both = [name for name in first.numbers if name in second.numbers]
    sides = [[Side(family, built, built.revision.name) for built in (first, second)] for family in families(both)]
    judged = {row.metric: row for row in judged_rows(sides)}
    position = {stage.replace("@", "/"): i for i, stage in enumerate(first.revision.stages())}
    rest = [name for name in {**first.numbers, **second.numbers} if name not in judged]
    rest.sort(key=lambda name: position.get(name.split(".")[0], len(position)))
    behind = [behind_sentence(built) for built in (first, second) if built.build.behind]
    rows = [*judged.values(), *(_row(name, first.numbers.get(name), second.numbers.get(name)) for name in rest)]
    return Comparison(first.revision, second.revision, rows, changes(first.build, second.build), behind)


def _row(metric: str, one: float | None, other: float | None) -> Row:
    """The tracked values without a verdict."""
    return Row(metric, one, other, None if one is None or other is None else other - one)


def judged_rows(pairs: Iterable[Sequence[Side]]) -> list[Row]:
    """Return a row for each metric that both sides of a pair have.

    Rows whose records are missing for the same reason share a note that names all these files.
    """
    missing: list[MissingArtifact] = []
    rows = [row for first, second in pairs for row in _family_rows(first, second, missing)]
    paths: dict[tuple[str, str], dict[str, None]] = {}
    for error in missing:
        paths.setdefault((error.revision, error.why), {}).update(dict.fromkeys(error.paths))
    notes = {str(e): str(MissingArtifact(e.revision, paths[e.revision, e.why], e.why)) for e in missing}
    return [row._replace(note=notes.get(row.note, row.note)) for row in rows]


def _family_rows(first: Side, second: Side, missing: list[MissingArtifact]) -> list[Row]:
    """One row per metric of the family; records that cannot be read are added to `missing`."""
    family = first.family
    rows = {name: _row(f"{family.prefix}.{name}", first.value(name), second.value(name)) for name in family.names}
    rows = {name: row for name, row in rows.items() if row.difference is not None}
    try:
        differences, n, left_out = _differences(first, second, list(rows))
    except Unpaired as error:
        return [row._replace(difference=None, verdict=NOT_COMPARED, note=str(error)) for row in rows.values()]
    except MissingArtifact as error:
        if _have_same_records(first, second):
            return [row._replace(verdict=SAME) for row in rows.values()]
        missing.append(error)
        return [row._replace(verdict=NOT_COMPARED, note=str(error)) for row in rows.values()]
    note = f"{left_out} of {n + left_out} {family.examples} have no value on one of the two sides and are left out"
    return [_judged(row, differences[name], n, note if left_out else "") for name, row in rows.items()]


def _differences(first: Side, second: Side, names: Sequence[str]) -> tuple[dict[str, PairedDifference], int, int]:
    """Differences by metric, the number of pairs and of examples left out. Raises Unpaired or MissingArtifact."""
    family, sides = first.family, (first, second)
    if family.prefix.startswith("judge."):
        _refuse_other_judges(first.built, second.built)
    if family == second.family:
        _refuse_other_processors(first, second)
    tracked = [{name: side.built.numbers[f"{side.family.prefix}.{name}"] for name in names} for side in sides]
    records = [side.family.read(side.built.revision) for side in sides]
    for side, found, values in zip(sides, records, tracked, strict=True):
        check_records(side.family, found, values, side.built.revision)
    one, other, left_out = pair_up(family, records[0], records[1], (first.name, second.name))
    was, is_now = family.statistics(one, tracked[0]), family.statistics(other, tracked[1])
    n = len(next(iter(one.values())))
    return paired_differences({name: (was[name], is_now[name]) for name in names}), n, left_out


def _judged(row: Row, found: PairedDifference, n: int, note: str) -> Row:
    if math.isnan(found.difference):
        return row._replace(verdict=NOT_COMPARED, note=f"{row.metric} is undefined (0/0) on one of the two sides")
    verdict = SAME if found.same else NO_EVIDENCE
    if not found.same and found.interval and not found.interval[0] <= 0 <= found.interval[1]:
        verdict = BETTER if better(row.metric, found.difference) else WORSE
    needed = found.needed if verdict == NO_EVIDENCE else None
    row = row._replace(difference=found.difference, verdict=verdict, interval=found.interval)
    return row._replace(examples=n, needed=needed, note=note)


def _refuse_other_judges(first: Built, second: Built) -> None:
    judges = (flattened(built.metrics["judge"].get("judge", {})) for built in (first, second))
    if different := [f"{change.name} {change.old} and {change.new}" for change in differing(*judges)]:
        raise Unpaired(
            f"judge.mean_score comes from different judges ({', '.join(different)}), whose scores are on different "
            "scales; to compare, build both with the same judge section and the same server"
        )


def _have_same_records(first: Side, second: Side) -> bool:
    """Whether dvc.lock has the same hashes for both."""
    paths = zip(first.family.paths, second.family.paths, strict=True)
    return all(first.built.build.outs.get(one, "") == second.built.build.outs.get(other) for one, other in paths)


def _refuse_other_processors(first: Side, second: Side) -> None:
    """Raises Unpaired if the processors differ, and not on purpose: what is left of rounding could get a verdict."""
    file, pair = first.family.prefix.split(".")[0], (first.built, second.built)
    one, other = (built.arithmetic.get(file, frozenset()) for built in pair)
    settings = [[built.build.parameters.get(key) for key in ("device", "precision")] for built in pair]
    if one != other and settings[0] == settings[1] and not _have_same_records(first, second):
        names, by = [built.revision.name for built in pair], tell_apart(one, other)
        raise Unpaired(
            f"{names[0]} was built with {by[0]}, {names[1]} with {by[1]}, and rounding alone makes their results "
            f"differ; to compare them, build both on one processor: `scratchlm build {' '.join(names)}`"
        )


def behind_sentence(built: Built) -> str:
    """Return the sentence for results that are older than their parameters or code, without its full stop."""
    revision, stages = built.revision, built.build.behind
    return (
        f"{revision.name} is not built from what it holds: parameters, packages, code or metrics of "
        f"{', '.join(stages)} have changed since its last `dvc repro`; rebuild: {revision.rebuild}"
    )
