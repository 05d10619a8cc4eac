"""Are the results in the workspace the committed ones? One sentence, without building anything."""

from pathlib import Path

from scratchlm.compare.builds import keep
from scratchlm.compare.clone import private_clone
from scratchlm.compare.git import changed_files
from scratchlm.compare.processors import processor, recorded, results, tell_apart
from scratchlm.compare.revision import INPUTS, LOCK, RESULTS, WORKSPACE, Revision
from scratchlm.compare.text import first_few
from scratchlm.verify.tolerances import deviations

HEAD = "HEAD"


def status(root: Path) -> str:
    """Say whether the results in the workspace are those of HEAD: identical, equal within tolerance, or different.

    Results of HEAD that another processor computed are kept as a build of HEAD, so that `compare` finds them.
    Raises UserError if there is no such project or no commit.
    """
    committed, here = Revision(HEAD, root), Revision(WORKSPACE, root)
    root = here.root
    if not (old := committed.metrics()):
        return f"{committed} has no results to compare with; {'commit these' if here.metrics() else 'run `dvc repro`'}."
    changed, inputs = changed_files(root, *RESULTS), changed_files(root, *INPUTS)
    if not (root / LOCK).exists():
        return (
            f"{LOCK} is missing; `git checkout {LOCK}` restores that of {committed}, and `dvc repro` makes a new one."
        )
    if not changed:
        if others := _outputs_of_another_build(root):
            return (
                f"The metrics here are the committed ones of {committed}, but {first_few(others)} are not its outputs; "
                "run `dvc checkout`, and `dvc repro` if that does not find them."
            )
        since = f", though {first_few(inputs)} changed; run `dvc repro` unless you have since" if inputs else ""
        return f"Identical to the committed results of {committed}{since}."
    if inputs:
        return (
            f"Built from other inputs than the committed results of {committed} ({first_few(inputs)} changed); "
            f"`scratchlm compare {HEAD}` says whether that helped."
        )
    new = here.metrics()
    found = [
        each._replace(key=f"{name}.{each.key}")  # as in `compare`
        for name in {**old, **new}
        for each in deviations(results(old.get(name, {})), results(new.get(name, {})))
    ]
    beyond = [each for each in found if not each.within]
    one, other = recorded(old.values()), recorded(new.values())
    why = ""
    if one != other:
        by = tell_apart(one, other)
        why = f" They were built with {by[0]}, these with {by[1]} ({processor()})."
        assert committed.commit
        with private_clone(root) as clone:
            keep(root, clone, committed.commit)
    if not (found or why):
        return (
            f"The metrics here are the committed ones of {committed}, but {first_few(changed)} changed, as dvc.lock "
            "does with code that changes no result; commit it, too."
        )
    if beyond:
        named = [f"{each.key} {each.committed} → {each.rebuilt}" for each in beyond]
        return f"Different from the committed results of {committed}: {first_few(named)}.{why}"
    return f"Equal to the committed results of {committed} within the tolerances of `scratchlm verify`.{why}"


def _outputs_of_another_build(root: Path) -> list[str]:
    """Return the outputs that are missing or differ from dvc.lock, as after `git switch` without `dvc checkout`."""
    from dvc.repo import Repo  # takes half a second to import

    with Repo(str(root)) as repo:
        found = repo.data_status()["uncommitted"]
    return sorted(path for kind in ("modified", "deleted") for path in found.get(kind, []))
