"""One stage compared, with caches and files made by hand."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from scratchlm.verify.check import check_stage
from scratchlm.verify.commit import CommittedStage, Output
from scratchlm.verify.findings import Finding
from scratchlm.verify.rebuild import Built, Rebuild


class Place:
    """What a user has (cache, committed) and what a rebuild gave (clone)."""

    def __init__(self, folder: Path) -> None:
        self.cache, self.clone, self.committed = folder / "cache", folder / "clone", folder / "committed"
        self.rebuild = Rebuild(self.clone, self.committed, {}, None)

    def put(self, cache: Path, content: str) -> str:
        """Keep an object; its hash."""
        md5 = hashlib.md5(content.encode()).hexdigest()
        write(cache / md5[:2] / md5[2:], content)
        return md5

    def record(self, *packages: str) -> str:
        """What the stage `code` wrote of a stage that uses these packages; its path."""
        write(self.clone / "data/code/train.json", json.dumps({"files": {}, "packages": dict.fromkeys(packages, "1")}))
        return "data/code/train.json"

    def put_folder(self, cache: Path, files: dict[str, str]) -> str:
        listing = json.dumps([{"md5": self.put(cache, text), "relpath": name} for name, text in files.items()])
        md5 = hashlib.md5(listing.encode()).hexdigest() + ".dir"
        write(cache / md5[:2] / md5[2:], listing)
        return md5

    def compare(
        self, stage: CommittedStage, outputs: dict[str, str], *, inputs: dict[str, str] | None = None, **how: Any
    ) -> list[Finding]:
        """Findings where the rebuild of `stage` gave `outputs`, hashes by path."""
        rebuild = self.rebuild._replace(stages={stage.name: Built(inputs or {}, outputs)})
        how = {"other_machine": False, "outside": False, "start": ""} | how
        return list(check_stage(stage, rebuild, self.cache, **how))


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def stage_of(*outputs: Output, **changes: Any) -> CommittedStage:
    values = {"inputs": {}, "stale": {}, "code": None, "external": False} | changes
    return CommittedStage("train", frozenset(), outputs, **values)


def kept(path: str, md5: str | None) -> Output:
    return Output(path, md5, cached=True, is_metric=False, edited=False)


def metric(path: str, md5: str, edited: bool = False) -> Output:
    return Output(path, md5, cached=False, is_metric=True, edited=edited)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_of_a_folder_only_the_files_that_differ_are_listed(place):
    old = place.put_folder(place.cache, {"a.txt": "same", "b.txt": "old", "gone.txt": "x"})
    new = place.put_folder(place.rebuild.cache, {"a.txt": "same", "b.txt": "new", "more/c.txt": "y"})
    assert place.compare(stage_of(kept("data/model", old)), {"data/model": new}) == [
        Finding("train", "data/model/b.txt", "different", "3 of 3 bytes differ, the first at 0"),
        Finding("train", "data/model/gone.txt", "different", "is only committed"),
        Finding("train", "data/model/more/c.txt", "different", "is only rebuilt"),
    ]


@pytest.mark.parametrize("state", ["absent", "damaged"])
def test_without_an_intact_copy_of_the_committed_file_the_hashes_are_all_there_is(place, state):
    old, new = place.put(place.cache, "old"), place.put(place.rebuild.cache, "new")
    copy = place.cache / old[:2] / old[2:]
    copy.unlink() if state == "absent" else copy.write_text("olD")
    (finding,) = place.compare(stage_of(kept("x", old)), {"x": new})
    assert finding.detail == "the hashes differ; the committed file is not in the cache here"


def test_what_was_not_rebuilt_or_not_recorded_is_missing(place):
    stage = stage_of(kept("x", "abc"), kept("y", None))
    assert [(f.path, f.verdict, f.detail) for f in place.compare(stage, {"y": "def"}, start="tokenize")] == [
        ("x", "missing", "was not rebuilt; follows from tokenize"),
        ("y", "missing", "dvc.lock does not have it"),
    ]


@pytest.mark.parametrize("how", ["other_machine", "outside"])
@pytest.mark.parametrize(("score", "verdict"), [(71.5, "within tolerance"), (75.0, "different")])
def test_where_bits_are_not_expected_metrics_have_a_tolerance_and_files_none(place, how, score, verdict):
    write(place.committed / "metrics/m.json", '{"mean_score": 70.0}')
    write(place.clone / "metrics/m.json", json.dumps({"mean_score": score}))
    stage = stage_of(metric("metrics/m.json", "old"), kept("x", "old"), code=place.record("torch"))
    scores, file = place.compare(stage, {"metrics/m.json": "new", "x": "new"}, **{how: True})
    assert (scores.verdict, file.verdict) == (verdict, "not compared")
    assert scores.detail == f"mean_score 70.0 → {score} (may differ by 3)"
    assert scores.largest == score - 70


@pytest.mark.parametrize(
    ("packages", "inputs", "verdict"),
    [
        ({"pyarrow", "numpy"}, {"data/raw": "same"}, "different"),
        ({"pyarrow", "numpy"}, {"data/raw": "other"}, "not compared"),
        ({"pyarrow", "torch"}, {"data/raw": "same"}, "not compared"),
    ],
)
def test_other_arithmetic_excuses_only_what_computes_or_follows_from_it(place, packages, inputs, verdict):
    stage = stage_of(kept("x", "old"), inputs={"data/raw": "same"}, code=place.record(*packages))
    (finding,) = place.compare(stage, {"x": "new"}, inputs=inputs, other_machine=True)
    assert finding.verdict == verdict


def test_an_edited_metric_is_found_even_if_its_stage_was_not_rebuilt(place):
    write(place.committed / "metrics/m.json", '{"loss": 3.0}')
    stage = stage_of(metric("metrics/m.json", "old", edited=True))
    (finding,) = check_stage(stage, place.rebuild, place.cache, other_machine=True, outside=False, start="")
    assert (finding.verdict, finding.detail) == ("edited", "differs from what dvc.lock records")


def test_another_input_than_recorded_is_stale_unless_it_follows_from_an_earlier_stage(place):
    stage = stage_of(inputs={"data/tokens": "old"})
    found = place.compare(stage, {}, inputs={"data/tokens": "new"})
    assert [(finding.path, finding.verdict) for finding in found] == [("data/tokens", "stale")]
    assert place.compare(stage, {}, inputs={"data/tokens": "new"}, start="tokenize") == []
