"""Each stage's script on tiny input, in the order of the pipeline, with the options that dvc.yaml gives it."""

import importlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from scratchlm.arithmetic.fingerprint import describe_arithmetic
from scratchlm.data.byte_pairs import BytePairTokenizer, save_byte_pairs, train_byte_pairs
from scratchlm.data.catalogue import CATALOGUE
from scratchlm.data.corpus import split_chunks
from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.formats.classifier import load_classifier
from scratchlm.formats.gguf import save_gguf
from scratchlm.formats.huggingface_config import read_config
from scratchlm.formats.huggingface_tokenizer import save_huggingface_tokenizer
from scratchlm.formats.names import LLAMA
from scratchlm.formats.native import load_gpt, save_gpt
from scratchlm.formats.openai import hparams
from scratchlm.formats.reward import load_reward_model
from scratchlm.model.config import PRETRAINED, GPTConfig, ModelParams
from scratchlm.model.gpt import build_model
from scratchlm.run.context import Run
from scratchlm.run.errors import UserError
from scratchlm.run.files import only_file, read_csv, read_json, read_splits, read_table, write_json
from scratchlm.run.pipeline import read_stages
from scratchlm.tasks.scores import PREDICTION_SCHEMA
from scratchlm.training.reward import rewards
from tests import smollm

REPOSITORY = Path(__file__).resolve().parents[2]
TINY: dict[str, Any] = {
    "threads": 1,
    "gpt2_sizes": [],
    "tokenizer": {"kind": "bpe", "vocab_size": 300},
    "model": {"size": "custom", "custom": {"n_layers": 1, "n_heads": 2, "emb_dim": 16}, "context_length": 256},
    "evaluation": {"context_length": 16, "batch_size": 8, "max_rows": 4},
    "pretrain": {"epochs": 0.5, "batch_size": 4, "stride": 256, "evaluate_every_steps": 3, "warmup_steps": 2},
    "finetune_spam": {"base": "pretrain", "epochs": 1, "evaluate_every_steps": 2, "padding": 24},
    "finetune_instruct": {"base": "pretrain", "epochs": 1, "evaluate_every_steps": 2},
    "generate": {"max_new_tokens": 8},
    "judge": {"controls": 2},
    "pretrain_ablations": {"same": {}, "rope": {"position": "rope"}},
    "spam_ablations": {"first": {"position": "first"}},
    "finetune_preference": {"epochs": 2, "batch_size": 8, "warmup_steps": 1, "evaluate_every_steps": 3},
    "preference_runs": {"dpo": {}, "ipo": {"loss": "ipo"}},
    "reward_model": {"epochs": 2, "batch_size": 8, "warmup_steps": 1, "evaluate_every_steps": 3},
    "reward_runs": {"thin": {"lora": {"rank": 2, "alpha": 2.0, "layers": "blocks"}}},
    "reinforce": {"max_new_tokens": 4, "responses_per_prompt": 2, "evaluate_every_steps": 2},
    "reinforce_runs": {"ppo": {"reward": "models/reward_model/thin", "algorithm": "ppo", "unfinished_reward": -3.0}},
    "variants": {"base": "pretrain"},
}
Call = Callable[..., None]


def caller(folder: Path, source: Path = REPOSITORY) -> Call:
    """Runs a stage's `main` with dvc.yaml's options, each path below `folder`; keywords name other paths.

    source: the project whose params.yaml resolves dvc.yaml.
    """
    definitions = read_stages(source)

    def call(stage: str, **changes: Path) -> None:
        words = definitions[stage]["cmd"].split()[3:]
        paths = {name[2:].replace("-", "_"): folder / path for name, path in zip(words[::2], words[1::2], strict=True)}
        run = Run(stage=stage, log=paths.pop("log"))
        paths.pop("resume", None)
        importlib.import_module(f"stages.{stage.partition('@')[0]}").main(run, **paths | changes)

    return call


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with dvc.yaml, params.yaml (tiny) and raw data, in which the stages are run one after the other."""
    place = tmp_path_factory.mktemp("pipeline")
    params = yaml.safe_load((REPOSITORY / "profiles" / "sample.yaml").read_text())
    for section, changes in TINY.items():
        params[section] = changes if section in ("threads", "tokenizer", "gpt2_sizes") else params[section] | changes
    (place / "params.yaml").write_text(yaml.safe_dump(params))
    (place / "dvc.yaml").write_bytes((REPOSITORY / "dvc.yaml").read_bytes())
    stories = "".join(f"Sara saw {n} red birds by the lake. Tim saw {n + 1} dogs.\n" for n in range(300))
    messages = "".join(
        f"spam\tWin prize {n} now, call 0{n}!\nham\tSee you at {n} then, ok?\nham\tI am late {n}\n" for n in range(40)
    )
    tasks = [{"instruction": f"Say {n}.", "input": "" if n % 2 else "x", "output": f"{n}."} for n in range(60)]
    pairs = [{**task, "chosen": task["output"], "rejected": f"{n}!"} for n, task in enumerate(tasks)]
    texts = {"corpus": stories, "messages": messages}
    texts |= {"instructions": json.dumps(tasks), "preferences": json.dumps(pairs)}
    for kind, text in texts.items():
        folder = place / "data" / "raw" / kind
        folder.mkdir(parents=True)
        (folder / "file").write_text(text)
    return place


@pytest.fixture(scope="module")
def call(place: Path) -> Call:
    """Runs stages in `place`, where tokenize has run."""
    call = caller(place, place)
    call("tokenize")
    return call


def test_preflight_leaves_the_same_marker_for_any_valid_parameters(place: Path, call: Call) -> None:
    call("preflight", marker=place / "one")
    call("preflight", marker=place / "other", params=REPOSITORY / "params.yaml")
    assert (place / "one").read_bytes() == (place / "other").read_bytes()


def test_preflight_names_files_that_no_stage_makes_and_deletes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = (
        "load_gpt2", "load_pretrained", "ablate_pretrain", "ablate_spam", "finetune_preference", "reward_model",
        "reinforce", "generate",
    )  # fmt: skip
    loaded, *others = (tmp_path / "metrics" / name for name in folders)
    names = ("nano.json", "124M.json", "NOTES.md", "mine/a.txt")
    responses = tmp_path / "data" / "responses" / "generate"
    stale = [loaded / "124M.json", *(folder / "x.json" for folder in others), responses / "x.parquet"]
    files = [*(loaded / name for name in names), *stale[1:], responses / "instruct.parquet"]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    caller(tmp_path)("preflight", params=REPOSITORY / "params.yaml")
    assert all(file.exists() for file in files)
    plan, *lines = capsys.readouterr().err.splitlines()
    assert plan.startswith("preflight: about ")
    assert [line.split()[1] for line in lines] == [str(path) for path in stale]


def test_download_fetches_the_sample_from_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.delenv("SCRATCHLM_MIRROR", raising=False)
    caller(tmp_path)("download", params=REPOSITORY / "params.yaml")
    sources = read_json(tmp_path / "data" / "sources.json")
    assert sorted(sources) == [
        "gpt2-nano", "sample-instructions", "sample-messages", "sample-preferences", "sample-stories",
    ]  # fmt: skip
    assert sources["gpt2-nano"]["files"] == 5
    for source, entry in sources.items():
        files = list((tmp_path / "data" / "raw" / (CATALOGUE[source].purpose or source)).iterdir())
        assert sum(path.stat().st_size for path in files) == entry["bytes"]


def test_tokenize_writes_shards_splits_and_counts(place: Path, call: Call) -> None:
    counts, tokens = read_json(place / "metrics" / "tokenize.json"), place / "data" / "tokens"
    splits = read_splits(tokens / "messages")
    assert counts["vocab_size"] == load_tokenizer(tokens / "tokenizer").vocab_size == 300
    assert counts["finetuning_vocab_size"] == load_tokenizer(tokens / "finetuning_tokenizer").vocab_size == 300
    assert [len(splits[name]) for name in ("train", "val", "test")] == [56, 8, 16]
    assert counts["messages"]["read"] == 120
    assert counts["instructions"]["test"]["records"] == len(read_splits(tokens / "instructions")["test"]) == 6
    assert counts["corpus"]["train"]["bytes"] > 8 * counts["corpus"]["val"]["bytes"]


@pytest.mark.long
def test_the_rest_of_the_pipeline_runs_from_tokens_to_report(place: Path, call: Call) -> None:
    metrics, data = place / "metrics", place / "data"
    tokens, models, responses = data / "tokens", data / "models", data / "responses"

    call("pretrain")
    curve = read_csv(metrics / "plots" / "pretrain.csv")
    assert float(curve[-1]["val_loss"]) < float(curve[0]["val_loss"])
    assert len(read_json(data / "samples" / "pretrain.json", list)) == len(curve)
    assert read_json(metrics / "pretrain.json")["untrained_val_loss"] == pytest.approx(math.log(300), abs=0.1)
    windows = read_table(data / "losses" / "pretrain.parquet")
    mean = sum(row["loss_nats"] for row in windows) / sum(row["scored_tokens"] for row in windows)
    assert mean == pytest.approx(read_json(metrics / "pretrain.json")["val"]["loss"], rel=1e-5)

    call("ablate_pretrain@same")  # shows no samples, which changes nothing
    same, original = read_json(metrics / "ablate_pretrain" / "same.json"), read_json(metrics / "pretrain.json")
    assert same == original | {"kv_cache_bytes_per_token": 4 * 2 * 16}
    assert read_table(data / "losses" / "ablate_pretrain" / "same.parquet") == windows
    call("ablate_pretrain@rope")
    rotated = read_json(metrics / "ablate_pretrain" / "rope.json")
    assert rotated["parameters"] == original["parameters"] - 256 * 16
    assert rotated["val"]["loss"] != original["val"]["loss"]
    ids = [row["id"] for row in read_table(data / "losses" / "ablate_pretrain" / "rope.parquet")]
    assert ids == [row["id"] for row in windows]

    call("finetune_spam")
    predictions = read_table(data / "predictions" / "finetune_spam.parquet")
    right = sum(row["label"] == row["predicted"] for row in predictions) / len(predictions)
    assert right == pytest.approx(read_json(metrics / "finetune_spam.json")["test"]["accuracy"])
    assert {row["id"] for row in predictions} == {row["id"] for row in read_splits(tokens / "messages")["test"]}
    classifier, settings = load_classifier(models / "finetune_spam")
    assert (settings.padded_tokens, settings.classes) == (24, ["ham", "spam"])
    assert classifier.head.out_features == 2

    call("baseline_spam")
    baseline, scores = (read_json(metrics / f"{name}.json") for name in ("baseline_spam", "finetune_spam"))
    assert [row["id"] for row in read_table(data / "predictions" / "baseline_spam.parquet")] == [
        row["id"] for row in predictions
    ]
    gain = scores["test"]["accuracy"] - baseline["test"]["accuracy"]
    assert baseline["gain_of_finetune_spam"]["accuracy"] == pytest.approx(gain, abs=1e-6)

    call("finetune_instruct")
    losses = read_json(metrics / "finetune_instruct.json")
    assert losses["after"]["val_loss"] < losses["before"]["val_loss"]
    answers = read_table(data / "losses" / "finetune_instruct.parquet")
    mean = sum(row["loss_nats"] for row in answers) / sum(row["scored_tokens"] for row in answers)
    assert mean == pytest.approx(losses["after"]["test_loss"], rel=1e-5)
    tasks = [row["id"] for row in read_splits(tokens / "instructions")["test"]]
    assert [row["id"].rpartition("-")[0] for row in answers] == tasks
    assert load_gpt(models / "finetune_instruct").config == load_gpt(models / "pretrain").config

    call("finetune_preference@dpo")
    preferred, pairs = metrics / "finetune_preference" / "dpo.json", data / "losses" / "finetune_preference"
    curve = read_csv(metrics / "plots" / "finetune_preference" / "dpo.csv")
    assert {float(curve[0][f"{split}_loss"]) for split in ("train", "val")} == {round(math.log(2), 6)}
    assert float(curve[-1]["train_loss"]) < float(curve[0]["train_loss"])
    scores, rows = read_json(preferred)["test"], read_table(pairs / "dpo.parquet")
    assert sum(row["loss"] for row in rows) / len(rows) == pytest.approx(scores["loss"], rel=1e-5)
    assert [row["id"].rpartition("-")[0] for row in rows] == [
        row["id"] for row in read_splits(tokens / "preferences")["test"]
    ]
    assert load_gpt(models / "finetune_preference" / "dpo").config == load_gpt(models / "finetune_instruct").config
    call("finetune_preference@ipo")
    assert read_json(preferred.with_name("ipo.json"))["test"]["loss"] != scores["loss"]

    for name in ("bradley_terry", "thin"):
        call(f"reward_model@{name}")
        rating, given = load_reward_model(models / "reward_model" / name), read_splits(tokens / "preferences")["test"]
        assert (models / "reward_model" / name / "adapter.safetensors").exists() == (name == "thin")
        rows = read_table(data / "losses" / "reward_model" / f"{name}.parquet")
        assert [row["id"].rpartition("-")[0] for row in rows] == [row["id"] for row in given]
        chosen = [[*row["prompt_token_ids"], *row["chosen_token_ids"]] for row in given]
        assert rewards(rating, chosen).tolist() == pytest.approx([row["chosen_reward"] for row in rows], abs=1e-6)
        scores = read_json(metrics / "reward_model" / f"{name}.json")
        assert sum(row["loss"] for row in rows) / len(rows) == pytest.approx(scores["test"]["loss"], rel=1e-5)
        curve = read_csv(metrics / "plots" / "reward_model" / f"{name}.csv")
        assert scores["train"]["loss"] < float(curve[0]["train_loss"]) == round(math.log(2), 6)

    for name in ("grpo", "ppo"):
        call(f"reinforce@{name}")
        rows = read_table(data / "losses" / "reinforce" / f"{name}.parquet")
        assert [row["id"].rpartition("-")[0] for row in rows] == [row["id"] for row in given]
        scores, curves = read_json(metrics / "reinforce" / f"{name}.json"), metrics / "plots" / "reinforce"
        assert sum(row["reward"] for row in rows) / len(rows) == pytest.approx(scores["test"]["reward"], abs=1e-6)
        steps = read_csv(curves.with_name("reinforce_steps") / f"{name}.csv")
        assert list(steps[0]) == ["step", "reward", "tokens", "kl", "entropy", "clipped"]
        assert [int(row["step"]) for row in steps] == [*range(1, len(steps) + 1)]
        assert read_csv(curves / f"{name}.csv")[-1]["step"] == steps[-1]["step"]
        config = load_gpt(models / "reinforce" / name).config
        assert config == load_gpt(models / "finetune_instruct").config

    (responses / "generate").mkdir(parents=True)
    (responses / "generate" / "removed.parquet").write_text("no table")  # of a variant that params.yaml had
    for name in ("base", "instruct", "dpo", "grpo"):
        call(f"generate@{name}")
        answers = read_table(responses / "generate" / f"{name}.parquet")
        assert [(row["id"], row["model"]) for row in answers] == [(task, name) for task in tasks]
    params = yaml.safe_load((place / "params.yaml").read_text())
    params["generate"]["split"] = "val"
    (place / "val.yaml").write_text(yaml.safe_dump(params))
    answered = {name: place / f"val.{ending}" for name, ending in (("responses", "parquet"), ("metrics", "json"))}
    call("generate@base", params=place / "val.yaml", **answered)
    val = read_splits(tokens / "instructions")["val"]
    assert [row["id"] for row in read_table(answered["responses"])] == [row["id"] for row in val]

    for stage in ("pretrain", "finetune_spam", "finetune_instruct", "generate/base"):
        assert read_json(metrics / f"{stage}.json").items() >= describe_arithmetic("cpu").items()

    call("judge")
    scores = read_json(metrics / "judge.json")
    assert scores["control_reference"]["mean_score"] == 100
    assert scores["control_empty"]["mean_score"] == 0
    judged = [row["model"] for row in read_table(responses / "judge.parquet")]
    names = yaml.safe_load((place / "params.yaml").read_text())["variants"]  # in this order
    assert judged == [*(name for name in names for _ in range(6)), *judged[24:]]
    assert len(judged) == 4 * 6 + 3 * 2

    call("ablate_spam@first")
    ids = [row["id"] for row in read_table(data / "predictions" / "ablate_spam" / "first.parquet")]
    assert ids == [row["id"] for row in predictions]
    varied_scores, scores = (read_json(metrics / name) for name in ("ablate_spam/first.json", "finetune_spam.json"))
    assert varied_scores["padded_tokens"] == scores["padded_tokens"]
    assert varied_scores["train"] != scores["train"]

    (data / "sources.json").write_text("{}")
    shutil.copytree(REPOSITORY / "profiles", place / "profiles")
    write_json(data / "code" / "report.json", {"packages": {}})
    call("report")
    page = (data / "report.html").read_text()
    assert ">position first</td>" in page
    assert "ablate_spam@first" in page
    assert "<td>position rope</td>" in page
    assert "ablate_pretrain@rope" in page


@pytest.mark.parametrize("class_weights", [None, "balanced"])
def test_a_table_with_other_labels_runs_from_tokens_to_predictions(
    place: Path, call: Call, tmp_path: Path, class_weights: str | None
) -> None:
    values = yaml.safe_load((place / "params.yaml").read_text())
    values["finetune_spam"]["class_weights"] = class_weights
    values["tokenize"]["messages"] |= {"labels": ["sport", "law", "art"], "balance": class_weights is None}
    params, base, raw = tmp_path / "params.yaml", tmp_path / "base", tmp_path / "messages"
    params.write_text(yaml.safe_dump(values))
    save_gpt(base, build_model(ModelParams(**values["model"]).config(300), seed=5))
    raw.mkdir()
    kinds = {
        "sport": "team {} won {} goals",
        "law": "court {} ruled on case {}",
        "art": "gallery {} shows {} paintings",
    }
    names = [*kinds] * 20 + ["law"] * 20
    lines = [f"{name},{kinds[name].format(i, 2 * i)}" for i, name in enumerate(names)]
    (raw / "news.csv").write_text("\n".join(["label,text", *lines]))
    sources = {name: place / "data" / "raw" / name for name in ("instructions", "preferences")}
    run = caller(tmp_path, place)
    corpus = place / "data" / "raw" / "corpus"
    run("tokenize", corpus=corpus, messages=raw, vocabulary=tmp_path / "none", **sources)
    run("finetune_spam", base=base)
    run("baseline_spam")
    scores, baseline = (read_json(tmp_path / "metrics" / f"{name}.json") for name in ("finetune_spam", "baseline_spam"))
    rows = read_table(tmp_path / "data" / "predictions" / "finetune_spam.parquet", PREDICTION_SCHEMA)
    assert all([name for name, _ in row["probabilities"]] == ["sport", "law", "art"] for row in rows)
    assert all(sum(dict(row["probabilities"]).values()) == pytest.approx(1) for row in rows)
    assert list(scores["train"]["classes"]) == ["art", "law", "sport"]  # JSON's keys are sorted
    assert baseline["test"]["macro_f1"] == 1.0
    gain = scores["test"]["accuracy"] - baseline["test"]["accuracy"]
    assert baseline["gain_of_finetune_spam"]["accuracy"] == pytest.approx(gain, abs=1e-6)
    classifier, settings = load_classifier(tmp_path / "data" / "models" / "finetune_spam")
    assert settings.classes == ["sport", "law", "art"] and classifier.head.out_features == 3


def test_both_finetunings_run_with_lora_and_leave_plain_weights_and_an_adapter(
    place: Path, call: Call, tmp_path: Path
) -> None:
    values = yaml.safe_load((place / "params.yaml").read_text())
    for section, layers in {"finetune_spam": "all", "finetune_instruct": "blocks"}.items():
        values[section]["lora"] = {"rank": 2, "alpha": 2.0, "layers": layers}
    params, base, tokens = tmp_path / "params.yaml", tmp_path / "base", place / "data" / "tokens"
    params.write_text(yaml.safe_dump(values))
    save_gpt(base, build_model(ModelParams(**values["model"]).config(300), seed=5))
    with_lora, inputs = caller(tmp_path), {"base": base, "tokenizer": tokens / "tokenizer"}
    with_lora("finetune_spam", messages=tokens / "messages", **inputs)
    with_lora("finetune_instruct", instructions=tokens / "instructions", **inputs)
    curve = read_csv(tmp_path / "metrics" / "plots" / "finetune_instruct.csv")
    assert float(curve[-1]["val_loss"]) < float(curve[0]["val_loss"])
    models = tmp_path / "data" / "models"
    assert (models / "finetune_spam" / "adapter.safetensors").exists()
    assert (models / "finetune_instruct" / "adapter.safetensors").exists()
    load_classifier(models / "finetune_spam")
    tuned, start = load_gpt(models / "finetune_instruct"), load_gpt(base)
    assert (tuned.token_embedding.weight == start.token_embedding.weight).all()
    assert (tuned.blocks[0].attention.qkv.weight != start.blocks[0].attention.qkv.weight).any()


@pytest.mark.long
def test_load_gpt2_measures_the_sample_checkpoint_on_the_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    sample = caller(tmp_path)
    for stage in ("download", "tokenize", "load_gpt2@nano"):
        sample(stage, params=REPOSITORY / "params.yaml")
    metrics = read_json(tmp_path / "metrics" / "load_gpt2" / "nano.json")
    assert metrics["tensors_mapped"] == 4 + 12 * 3
    assert metrics["val"]["loss"] < 1.0
    config = load_gpt(tmp_path / "data" / "models" / "gpt2-nano").config
    assert hparams(config) == read_json(tmp_path / "data" / "raw" / "gpt2-nano" / "hparams.json")


def test_another_pretrained_model_brings_its_vocabulary_to_the_finetunings(place: Path, tmp_path: Path) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(place / name, tmp_path)
    shutil.copytree(place / "data" / "raw", tmp_path / "data" / "raw")
    params = yaml.safe_load((tmp_path / "params.yaml").read_text())
    params["sources"]["vocabulary"], params["pretrained"] = "smollm2-135m", ["smollm2-135m"]
    params["tokenize"]["finetuning_tokenizer"] = "vocabulary"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    save_byte_pairs(tmp_path / "own", *train_byte_pairs(["Sara saw the red birds by the lake."] * 9, 270))
    tokenizer = load_tokenizer(tmp_path / "own")
    assert isinstance(tokenizer, BytePairTokenizer)
    shape = {"vocab_size": 270, "context_length": 64, "n_layers": 1, "n_heads": 4, "emb_dim": 16, "n_kv_heads": 2}
    llama = build_model(GPTConfig.model_validate(shape | LLAMA | {"tied_head": True}), seed=1)
    source = tmp_path / "data" / "raw" / "smollm2-135m"
    source.mkdir()
    save_gguf(source / "model.gguf", llama, tokenizer)

    call, metrics = caller(tmp_path, tmp_path), tmp_path / "metrics"
    for stage in ("tokenize", "load_pretrained@smollm2-135m"):
        call(stage)
    sizes = read_json(metrics / "tokenize.json")
    assert (sizes["vocab_size"], sizes["finetuning_vocab_size"]) == (300, 270)
    message = read_splits(tmp_path / "data" / "tokens" / "messages")["train"][0]
    assert message["token_ids"] == tokenizer.encode(message["text"])
    loaded = load_gpt(tmp_path / "data" / "models" / "smollm2-135m")
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in llama.state_dict().items())
    found = read_json(metrics / "load_pretrained" / "smollm2-135m.json")
    assert found["parameters"] == llama.config.n_parameters
    text = "".join(split_chunks(only_file(tmp_path / "data" / "raw" / "corpus"), 0.9)["val"])
    n_tokens, n_bytes = len(tokenizer.encode(text)), len(text.encode())
    expected = found["val"]["loss"] * n_tokens / n_bytes / math.log(2)
    assert found["val"]["bits_per_byte"] == pytest.approx(expected, rel=1e-5)
    assert len(read_table(tmp_path / "data" / "losses" / "smollm2-135m.parquet")) == (n_tokens - 1) // 16


def test_a_folder_of_hugging_face_becomes_a_base_of_the_finetunings(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, mirror = "smollm2-360m", tmp_path / "mirror"
    params = yaml.safe_load((place / "params.yaml").read_text())
    params["sources"]["vocabulary"], params["pretrained"] = name, [name]
    params["tokenize"]["finetuning_tokenizer"] = "vocabulary"
    params["finetune_instruct"]["base"] = name
    for file, text in {"params.yaml": yaml.safe_dump(params), "dvc.yaml": (place / "dvc.yaml").read_text()}.items():
        (tmp_path / file).write_text(text)
    tokenizer = BytePairTokenizer(*smollm.tiny_pairs(chat_template="{{ messages }}"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
                num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-5,
                rope_parameters={"rope_type": "default", "rope_theta": 1e5}, tie_word_embeddings=True,
            )
        )  # fmt: skip
    theirs.bfloat16().save_pretrained(mirror / name)
    save_huggingface_tokenizer(mirror / name, tokenizer, 256, tokenizer.pairs.settings.chat_template)
    source = CATALOGUE[name]
    unpinned = tuple(replace(file, sha256=None, size_bytes=None) for file in source.files)
    monkeypatch.setitem(CATALOGUE, name, replace(source, files=unpinned))
    config = read_config(mirror / name)
    monkeypatch.setitem(PRETRAINED, name, config)
    monkeypatch.setenv("SCRATCHLM_MIRROR", str(mirror))
    monkeypatch.chdir(REPOSITORY)

    call, data = caller(tmp_path, tmp_path), tmp_path / "data"
    call("download")
    assert read_json(data / "sources.json")[name]["files"] == 4
    for kind in ("corpus", "messages", "instructions"):  # the tiny ones instead of the sample's
        shutil.rmtree(data / "raw" / kind)
        shutil.copytree(place / "data" / "raw" / kind, data / "raw" / kind)
    for stage in ("tokenize", f"load_pretrained@{name}", "finetune_instruct"):
        call(stage)
    kept = load_tokenizer(data / "tokens" / "finetuning_tokenizer")
    assert isinstance(kept, BytePairTokenizer)
    assert kept.pairs == tokenizer.pairs
    loaded, tuned = (load_gpt(data / "models" / model) for model in (name, "finetune_instruct"))
    assert loaded.config == tuned.config == config
    token_ids = torch.arange(40)[None]
    expected = theirs.float()(token_ids).logits
    torch.testing.assert_close(loaded(token_ids), expected, atol=1e-4, rtol=0)
    assert not torch.allclose(tuned(token_ids), expected, atol=1e-4)

    monkeypatch.setitem(PRETRAINED, name, config.model_copy(update={"rope_base": 5e5}))
    sentence = f"{name}/config.json: rope_base is 100000.0, but that of {name} is 500000.0; fetch the files of that"
    with pytest.raises(UserError, match=sentence):
        call(f"load_pretrained@{name}")
