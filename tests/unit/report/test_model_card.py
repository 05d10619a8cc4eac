"""What an exported model says of itself, by a dvc.lock and metrics written here."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.tree import Tree

from scratchlm.data.catalogue import CATALOGUE
from scratchlm.model.config import GPTConfig
from scratchlm.report.card import Subject, licence, licence_text, model_card
from scratchlm.report.origin import Origin, Step, read_origin
from scratchlm.run.files import write_json

CONFIG = GPTConfig(
    vocab_size=1024, context_length=128, n_layers=1, n_heads=2, emb_dim=16, dropout=0.0, qkv_bias=True,
    tied_head=True, initialisation="gpt2", attention="sdpa",
)  # fmt: skip
SUBJECT = Subject("finetune_preference-dpo", CONFIG, 12_345, (), True)
EMPTY_MD5 = "d41d8cd98f00b204e9800998ecf8427e"
DPO = "finetune_preference/dpo"
TOKENIZER = "data/tokens/finetuning_tokenizer"


def folder_md5(*names: str) -> str:
    """What DVC calls a folder of these files, which are empty."""
    tree = Tree()
    for name in names:
        tree.add((name,), None, HashInfo("md5", EMPTY_MD5))
    tree.digest()
    return str(tree.hash_info.value)


MODEL_MD5 = folder_md5("config.json", "model.safetensors")


def stage(made: str, *used: str, metrics: str | None = None) -> dict[str, Any]:
    outs = [{"path": made, "md5": MODEL_MD5}]
    outs += [{"path": f"metrics/{metrics}.json"}] if metrics else []  # its hash follows
    return {"cmd": "python", "deps": [{"path": path, "md5": MODEL_MD5} for path in used], "outs": outs}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder in which dvc.lock records an assistant with preferences, made from an assistant, made from gpt2-124M."""
    base, assistant, dpo = (f"data/models/{name}" for name in ("gpt2-124M", "finetune_instruct", DPO))
    sources: dict[str, Any] = {"corpus": "tiny-shakespeare", "instructions": {"path": "data/mine/tasks.json"}}
    sources["preferences"] = "instruction-preference"
    responses = "data/responses/generate"
    stages = {
        "download": {"params": {"params.yaml": {"sources": sources}}},
        "load_gpt2@124M": stage(base, "data/raw/gpt2-124M", "data/tokens/corpus"),
        "finetune_instruct": stage(assistant, TOKENIZER, "data/tokens/instructions", base),
        "finetune_preference@dpo": stage(dpo, TOKENIZER, "data/tokens/preferences", assistant, metrics=DPO),
        "generate@polite": stage(f"{responses}/polite.parquet", dpo, metrics="generate/polite"),
        "generate@instruct": stage(f"{responses}/instruct.parquet", assistant, metrics="generate/instruct"),
        "judge": stage("data/responses/judge.parquet", responses, metrics="judge"),
    }
    for model in (dpo, assistant):
        folder = tmp_path / model
        folder.mkdir(parents=True)
        for file in ("config.json", "model.safetensors"):
            (folder / file).touch()
    test = {"accuracy": 0.875, "accuracy_low": 0.8, "accuracy_high": 0.92, "margin": 0.83}
    metrics = {
        DPO: {"arithmetic": "exact", "train": {"accuracy": 1.0}, "test": test},
        "generate/polite": {"exact_matches": 58, "kernels": "any"},
        "generate/instruct": {"exact_matches": 66},
        "judge": {"polite": {"mean_score": 67.19, "mean_low": 60.49, "mean_high": 73.7}, "judge": {"model": "a|b"}},
    }
    for name, values in metrics.items():
        write_json(tmp_path / "metrics" / f"{name}.json", values)
    for out in (out for each in stages.values() for out in each.get("outs", []) if "md5" not in out):
        out["md5"] = hashlib.md5((tmp_path / out["path"]).read_bytes()).hexdigest()
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    return tmp_path


def origin_of(project: Path, name: str = DPO) -> Origin:
    found = read_origin(project / "data/models" / name, project)
    assert found
    return found


def test_a_model_has_the_data_of_all_its_stages_and_its_own_results(project: Path) -> None:
    found = origin_of(project)
    assert found.steps == [
        Step("finetune_preference@dpo", "data/models/finetune_preference/dpo", MODEL_MD5),
        Step("finetune_instruct", "data/models/finetune_instruct", MODEL_MD5),
        Step("load_gpt2@124M", "data/models/gpt2-124M", MODEL_MD5),
    ]
    assert [source.name for source in found.sources] == ["instruction-preference", "own-instructions", "gpt2-124M"]
    assert found.metrics == {
        "finetune_preference/dpo.test.accuracy": 0.875,
        "finetune_preference/dpo.test.accuracy_low": 0.8,
        "finetune_preference/dpo.test.accuracy_high": 0.92,
        "finetune_preference/dpo.test.margin": 0.83,
        "generate/polite.exact_matches": 58,
        "judge.polite.mean_score": 67.19,
        "judge.polite.mean_low": 60.49,
        "judge.polite.mean_high": 73.7,
        "judge.judge.model": "a|b",
    }


@pytest.mark.parametrize(("name", "source"), [("tinystories", "tinystories"), ("ours", "own-corpus")])
def test_a_public_corpus_has_its_licence_when_it_is_pinned(project: Path, name: str, source: str) -> None:
    lock = yaml.safe_load((project / "dvc.lock").read_text())
    chosen = lock["stages"]["download"]["params"]["params.yaml"]["sources"]
    chosen["corpus"] = {"manifest": f"data/mine/{name}.jsonl"}
    lock["stages"]["pretrain"] = stage("data/models/pretrain", "data/tokens/corpus")
    (project / "dvc.lock").write_text(yaml.safe_dump(lock))
    (project / "data/models/finetune_instruct").rename(project / "data/models/pretrain")
    (found,) = origin_of(project, "pretrain").sources
    assert found.name == source and found.licence == (CATALOGUE[name].licence if name in CATALOGUE else "not stated")


def test_the_card_shows_intervals_licences_and_lineage_and_never_changes(project: Path) -> None:
    found = origin_of(project)
    text = model_card(SUBJECT, found, "0123abc", True)
    assert text == model_card(SUBJECT, origin_of(project), "0123abc", True)
    head, _, body = text.partition("\n---\n")
    assert yaml.safe_load(head) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "other",
    }
    lines = body.splitlines()
    for line in (
        "| finetune_preference/dpo.test.accuracy | 0.875 | 0.8 to 0.92 |",
        "| judge.polite.mean_score | 67.19 | 60.49 to 73.7 |",
        "| judge.judge.model | a&#124;b |  |",
        "| own-instructions | Own data: instructions | not stated | – |",
    ):
        assert line in lines
    assert "accuracy_low" not in text and "mean_low" not in text
    assert "Git revision `0123abc`, with a dvc.lock that is not committed." in text
    assert f"| `finetune_instruct` | `data/models/finetune_instruct` | `{found.steps[1].md5}` |" in lines
    assert licence_text(found).splitlines()[1] == "Data own-instructions: not stated. –"


def test_results_of_another_build_are_not_those_of_the_model(project: Path) -> None:
    write_json(project / "metrics" / f"{DPO}.json", {"test": {"accuracy": 1.0}})
    (project / "metrics/judge.json").unlink()
    assert origin_of(project).metrics == {"generate/polite.exact_matches": 58}
    lock = project / "dvc.lock"
    text = lock.read_text()
    newer = yaml.safe_load(text)
    newer["stages"]["load_gpt2@124M"]["outs"][0]["md5"] = "0" * 32  # the base was built again, the assistant was not
    lock.write_text(yaml.safe_dump(newer))
    assert read_origin(project / "data/models" / DPO, project) is None
    lock.write_text("")
    assert read_origin(project / "data/models" / DPO, project) is None


def test_a_model_that_dvc_lock_does_not_record_has_a_card_without_results(project: Path) -> None:
    (project / "data/models/finetune_instruct/model.safetensors").write_text("trained again")
    assert read_origin(project / "data/models/finetune_instruct", project) is None
    assert read_origin(project / "data/models/none", project) is None
    (project / "dvc.lock").unlink()
    assert read_origin(project / "data/models" / DPO, project) is None
    assert licence(None) is None
    text = model_card(SUBJECT._replace(classes=("ham", "news & views")), None, None, False)
    assert "The classes: ham, news &#38; views." in text and "AutoModelForCausalLM" not in text
    assert "license" not in text and "`dvc.lock` does not record this model" in text


def test_the_licence_is_that_of_all_data_if_it_is_one() -> None:
    for names, expected in (
        (("sample-instructions", "gpt2-nano"), "cc0-1.0"),
        (("instruction-data",), "apache-2.0"),
        (("sms-spam",), "cc-by-4.0"),
        (("instruction-data", "gpt2-124M"), "other"),
        (("the-verdict",), "other"),
    ):
        assert licence(Origin([], [CATALOGUE[name] for name in names], {})) == expected
