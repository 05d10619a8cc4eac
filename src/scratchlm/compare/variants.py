"""Compare the variants of the assistant at one revision: which of them answers the test tasks better?"""

from collections.abc import Mapping

from scratchlm.compare.changes import Change, Changes
from scratchlm.compare.compare import Built, Comparison, Side, Variant, behind_sentence, judged_rows, n_faults, read_all
from scratchlm.compare.records import families
from scratchlm.compare.revision import PARAMETERS, Revision
from scratchlm.run.errors import UserError
from scratchlm.run.params import Section, check_params
from scratchlm.tasks.variants import Variants


class _Params(Section):
    variants: Variants


def compare_variants(name: str, against: str) -> list[Comparison]:
    """Compare each variant of the assistant at a revision with the variant `against`, paired by task.

    Raises UserError if the revision is unknown, has no metrics, or lacks this variant or another one.
    """
    revision = Revision(name)
    builds = read_all(revision)
    variants = check_params(revision.yaml(PARAMETERS), _Params, source=f"{PARAMETERS} of {name}").variants
    if against not in variants:
        raise UserError(f"{name} has no variant {against!r}; choose one of {', '.join(variants)}")
    if len(variants) == 1:
        raise UserError(f"{name} has no variant but {against}; add one to variants in params.yaml, and run `dvc repro`")
    found = [
        [_compare_variants(built, against, other, variants) for other in variants if other != against]
        for built in builds
    ]
    return min(found, key=lambda comparisons: [sum(faults) for faults in zip(*map(n_faults, comparisons), strict=True)])


def _compare_variants(built: Built, against: str, other: str, variants: Mapping[str, str]) -> Comparison:
    found = {family.prefix: family for family in families(built.numbers)}
    pairs = [
        [Side(found[f"{stage}{name}"], built, name) for name in (against, other)]
        for stage in ("generate/", "judge.")
        if {f"{stage}{against}", f"{stage}{other}"} <= found.keys()
    ]
    rows = [row._replace(metric=row.metric.rpartition(".")[2]) for row in judged_rows(pairs)]
    made = Changes([Change("model", variants[against], variants[other])], [], [], [])
    behind = [behind_sentence(built)] if built.build.behind else []
    return Comparison(Variant(against, built.revision), Variant(other, built.revision), rows, made, behind)
