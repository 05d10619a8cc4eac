import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scratchlm.data.catalogue import CATALOGUE
from scratchlm.data.manifest import PinnedFile, format_of, write_manifest
from scratchlm.data.near_duplicates import write_signatures
from scratchlm.model.classifier import GPTClassifier
from scratchlm.model.gpt import GPTModel, parameter_count
from scratchlm.run.errors import UserError
from scratchlm.run.files import read_json
from scratchlm.run.params import check_params, load_yaml
from scratchlm.tasks import disk
from scratchlm.tasks.disk import DiskNeeds, check_disk, disk_needs, plan, planned_steps
from stages.preflight import Params

REPOSITORY = Path(__file__).resolve().parents[3]
NEEDS = DiskNeeds(downloads=10_000_000, models=90_000_000, tokens=5_000_000, temporary=45_000_000)
Free = Callable[..., None]


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Free:
    """Sets the free bytes, of the project and, if that is on a disk of its own, of the folder other."""
    (tmp_path / "other").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / ".dvc").mkdir()

    def set_free(project: int, other: int | None = None) -> None:
        def is_other(path: Path) -> bool:
            return other is not None and path.is_relative_to(tmp_path / "other")

        class Place(type(tmp_path)):  # type: ignore[misc]
            def stat(self, **options: bool) -> SimpleNamespace:
                found = super().stat(**options)
                return SimpleNamespace(st_dev=is_other(self), st_size=found.st_size, st_mode=found.st_mode)

        monkeypatch.setattr(shutil, "disk_usage", lambda p: SimpleNamespace(free=other if is_other(p) else project))
        existing = disk._existing
        monkeypatch.setattr(disk, "_existing", lambda folder: Place(existing(folder)))

    return set_free


def check(folder: Path) -> str | None:
    return check_disk(NEEDS, folder / "data", folder / ".dvc")


def test_the_needs_of_the_sample_follow_from_its_parameters() -> None:
    values = load_yaml(REPOSITORY / "profiles" / "sample.yaml")
    params = check_params(values, Params, source="params.yaml", whole=True)
    needs = disk_needs(params)
    nano = 4 * parameter_count(GPTModel(params.model.config(1024)))
    assert needs.models == 7 * nano  # pretrained, loaded and five times finetuned; all of one shape
    assert needs.tokens == 4 * 1_000_161  # bytes of the stories
    assert needs.temporary == needs.tokens + 2 * 3 * nano
    assert 1_000_161 < needs.downloads < 10_000_000
    steps = planned_steps(params)
    sentence = plan(params, needs, steps)
    assert sentence.startswith(
        f"about {steps.low} to {steps.high} steps of pretraining (at most 244), of 4,096 tokens each, an estimate for "
        "4 to 2 bytes per token, as in English; 26 MB of disk for downloads"
    )


@pytest.mark.parametrize("ablations", [{}, {"wide": {"size": "small"}}])
def test_the_steps_of_the_sample_are_within_the_estimate_and_counted_once_per_model(ablations: dict[str, Any]) -> None:
    values = load_yaml(REPOSITORY / "profiles" / "sample.yaml") | {"pretrain_ablations": ablations}
    steps = planned_steps(check_params(values, Params, source="params.yaml", whole=True))
    tokens = read_json(REPOSITORY / "metrics" / "tokenize.json")["corpus"]["train"]["tokens"]
    truth = (1 + len(ablations)) * (tokens // 256 // 16)
    assert 0.9 * truth < steps.low <= truth < steps.high < steps.most


def test_a_corpus_of_unknown_size_is_said_to_be_assumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    values = load_yaml(REPOSITORY / "profiles" / "sample.yaml")
    for name, size, expected in (
        ("a.txt", "each, an estimate for 4 to 2 bytes per token, as in English;", (109, 219, 488)),
        ("a.txt.gz", "as in English and a corpus of 2.0 MB to 10 MB, whose size is assumed;", (109, 1098, 2441)),
    ):
        pinned = PinnedFile(name, 2_000_000, "0" * 64, format_of(name), None)
        write_manifest(Path("data/mine/c.jsonl"), [pinned])
        values["sources"]["corpus"] = {"manifest": "data/mine/c.jsonl"}
        params = check_params(values, Params, source="params.yaml", whole=True)
        steps = planned_steps(params)
        assert size in plan(params, NEEDS, steps)
        assert steps == expected  # tokens over 4,096
    values["sources"]["corpus"] = {"path": "https://example.org/corpus.txt", "sha256": "0" * 64}
    params = check_params(values, Params, source="params.yaml", whole=True)
    assert "as in English and a corpus of 1,074 MB, whose size is assumed" in plan(params, NEEDS, planned_steps(params))


def test_the_signatures_of_near_duplicates_are_on_the_disk_before_the_trainings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    write_manifest(Path("data/mine/c.jsonl"), [PinnedFile("a.txt", 2_000_000_000, "0" * 64, format_of("a.txt"), None)])
    write_signatures(["One document."], tmp_path / "signature")
    values = load_yaml(REPOSITORY / "profiles" / "sample.yaml")
    values["sources"]["corpus"] = {"manifest": "data/mine/c.jsonl"}
    found = []
    for deduplicate in ("exact", {"near": 0.8}):
        values["tokenize"]["corpus"] |= {"split": "documents", "deduplicate": deduplicate}
        found.append(disk_needs(check_params(values, Params, source="params.yaml", whole=True)))
    sentences = 2_000_000_000 // 100
    assert found[1].temporary == sentences * (tmp_path / "signature").stat().st_size
    assert found[0].tokens < found[0].temporary < found[1].temporary
    assert found[0]._replace(temporary=0) == found[1]._replace(temporary=0)


def test_a_wheel_that_holds_a_download_is_on_the_disk_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    source = CATALOGUE["smollm2-135m"]
    monkeypatch.setattr(disk, "wanted_files", lambda *_: [(source, file) for file in source.files])
    values = load_yaml(REPOSITORY / "profiles" / "sample.yaml")
    needs = disk_needs(check_params(values, Params, source="params.yaml", whole=True))
    assert needs.downloads == 98_362_432
    assert needs.temporary == 92_871_040


def test_the_models_that_a_run_writes_are_not_smaller_than_said() -> None:
    """An untied head is in no classifier and in no reward model."""
    values = load_yaml(REPOSITORY / "profiles" / "sample.yaml")
    values["model"] |= {"tied_head": False}
    values |= {"gpt2_sizes": []}
    values["finetune_spam"] |= {"base": "pretrain"}
    values["finetune_instruct"] |= {"base": "pretrain"}
    params = check_params(values, Params, source="params.yaml", whole=True)
    model = GPTModel(params.model.config(1024))
    n_model = parameter_count(model)
    n_classifier = parameter_count(GPTClassifier(model, 2, "last"))
    assert 0 <= 4 * (4 * n_model + 2 * n_classifier) - disk_needs(params).models < 5_000  # the classifier's own head


def test_a_disk_that_has_enough_is_not_mentioned(tmp_path: Path, free: Free) -> None:
    free(2 * 105_000_000 + 45_000_000)
    assert check(tmp_path) is None


@pytest.mark.parametrize("n_bytes", [254_000_000, 100_000_000])
def test_a_disk_that_may_be_too_small_gives_a_warning(n_bytes: int, tmp_path: Path, free: Free) -> None:
    free(n_bytes)
    expected = f"the run may need up to 255 MB of disk, but {tmp_path / 'data'} has {n_bytes // 10**6} MB free"
    assert check(tmp_path) == expected


def test_a_disk_that_cannot_hold_the_models_is_refused_with_both_numbers(tmp_path: Path, free: Free) -> None:
    free(99_000_000)
    with pytest.raises(UserError) as caught:
        check(tmp_path)
    assert str(caught.value) == (
        f"downloads and models need at least 100 MB of disk, but {tmp_path / 'data'} has 99 MB free; free some space, "
        "move the project or DVC's cache (`dvc cache dir`) to a larger disk, or choose smaller models"
    )


def test_what_the_run_replaces_is_not_needed_again(tmp_path: Path, free: Free) -> None:
    (tmp_path / "data" / "models").mkdir()
    (tmp_path / "data" / "models" / "weights").write_bytes(bytes(2_000_000))
    free(98_000_000)
    assert "up to 251 MB" in (check(tmp_path) or "")
    free(97_000_000)
    with pytest.raises(UserError, match="at least 98 MB of disk"):
        check(tmp_path)


@pytest.mark.parametrize("where", ["config", "config.local", "../home/config"])
def test_a_cache_on_another_disk_needs_its_own_space(
    where: str, tmp_path: Path, free: Free, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    (tmp_path / "home" / "config").write_text("[cache]\n    dir = /nowhere\n")
    settings = "[cache]\n    dir = ../other/cache\n['remote \"a\"']\n    url = x%y\n"
    (tmp_path / ".dvc" / where).write_text(settings)
    free(150_000_000, 105_000_000)
    assert check(tmp_path) is None
    free(150_000_000, 104_000_000)
    assert (check(tmp_path) or "").endswith(f"up to 105 MB of disk, but {tmp_path / 'other'} has 104 MB free")
    free(150_000_000, 99_000_000)
    with pytest.raises(UserError, match=rf"at least 100 MB of disk, but {tmp_path / 'other'} has 99 MB free"):
        check(tmp_path)
    (tmp_path / "other" / "cache" / "files").mkdir(parents=True)  # what is needed may be there already
    assert "up to 105 MB" in (check(tmp_path) or "")


def test_artifacts_that_dvc_links_need_no_space_in_the_project(tmp_path: Path, free: Free) -> None:
    (tmp_path / ".dvc" / "config").write_text('[cache]\n    type = "reflink,symlink"\n')
    free(1_000_000)
    assert "up to 255 MB" in (check(tmp_path) or "")
