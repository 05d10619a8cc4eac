"""Each stage's script on tiny input, in the order of the pipeline."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml

from scratchlm.arithmetic.fingerprint import describe_arithmetic
from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.formats.classifier import load_classifier
from scratchlm.formats.native import load_gpt, save_gpt
from scratchlm.formats.openai import hparams
from scratchlm.model.config import ModelParams
from scratchlm.model.gpt import build_model
from scratchlm.run.files import read_csv, read_json, read_splits, read_table
from scratchlm.run.resume import Resume
from stages import (
    ablate_spam,
    download,
    finetune_instruct,
    finetune_spam,
    generate,
    judge,
    load_gpt2,
    preflight,
    pretrain,
    report,
    tokenize,
)

REPOSITORY = Path(__file__).resolve().parents[2]
TINY: dict = {
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
    "spam_ablations": {"first": {"position": "first"}},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with params.yaml (tiny) and raw data, in which the stages are run one after the other."""
    place = tmp_path_factory.mktemp("pipeline")
    params = yaml.safe_load((REPOSITORY / "profiles" / "sample.yaml").read_text())
    for section, changes in TINY.items():
        params[section] = changes if section in ("threads", "tokenizer", "gpt2_sizes") else params[section] | changes
    (place / "params.yaml").write_text(yaml.safe_dump(params))
    raw = place / "raw"
    stories = "".join(f"Sara saw {n} red birds by the lake. Tim saw {n + 1} dogs.\n" for n in range(300))
    messages = "".join(
        f"spam\tWin prize {n} now, call 0{n}!\nham\tSee you at {n} then, ok?\nham\tI am late {n}\n" for n in range(40)
    )
    tasks = [{"instruction": f"Say {n}.", "input": "" if n % 2 else "x", "output": f"{n}."} for n in range(60)]
    for name, text in {"corpus": stories, "messages": messages, "instructions": json.dumps(tasks)}.items():
        (raw / name).mkdir(parents=True)
        (raw / name / "file").write_text(text)
    return place


def tokenize_into(place: Path) -> None:
    if not (place / "tokens").exists():
        tokens = place / "tokens"
        tokenize.main(
            place / "params.yaml", place / "no-vocabulary", place / "raw/corpus", place / "raw/messages",
            place / "raw/instructions", tokens / "tokenizer", tokens / "corpus", tokens / "messages",
            tokens / "instructions", place / "metrics/tokenize.json",
        )  # fmt: skip


def test_preflight_leaves_the_same_marker_for_any_valid_parameters(place):
    folders = [place / name for name in ("loaded", "ablated")]
    preflight.main(place / "params.yaml", *folders, place / "one", place / "one.json")
    preflight.main(REPOSITORY / "params.yaml", *folders, place / "other", place / "other.json")
    assert (place / "one").read_bytes() == (place / "other").read_bytes()


def test_preflight_names_metrics_that_no_stage_makes_and_deletes_nothing(tmp_path, capsys):
    loaded, ablated = tmp_path / "loaded", tmp_path / "ablated"
    files = [
        loaded / "nano.json",
        loaded / "124M.json",
        loaded / "NOTES.md",
        loaded / "mine" / "a.txt",
        ablated / "x.json",
    ]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    preflight.main(REPOSITORY / "params.yaml", loaded, ablated, tmp_path / "marker", tmp_path / "preflight.json")
    assert all(file.exists() for file in files)
    named = [line.split()[1] for line in capsys.readouterr().err.splitlines()]
    assert named == [str(loaded / "124M.json"), str(ablated / "x.json")]


def test_preflight_says_how_this_machine_computes(place):
    folders = [place / name for name in ("loaded", "ablated")]
    preflight.main(place / "params.yaml", *folders, place / "marker", place / "preflight.json")
    assert read_json(place / "preflight.json") == describe_arithmetic(torch.device("cpu"))


def test_download_fetches_the_sample_from_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.delenv("SCRATCHLM_MIRROR", raising=False)
    download.main(REPOSITORY / "params.yaml", tmp_path / "store", tmp_path / "raw", tmp_path / "metrics.json")
    metrics = read_json(tmp_path / "metrics.json")
    assert sorted(metrics) == ["gpt2-nano", "sample-instructions", "sample-messages", "sample-stories"]
    assert metrics["gpt2-nano"]["files"] == 5
    for source, entry in metrics.items():
        files = list((tmp_path / "raw" / source).iterdir())
        assert sum(path.stat().st_size for path in files) == entry["bytes"]


def test_tokenize_writes_shards_splits_and_counts(place):
    tokenize_into(place)
    counts = read_json(place / "metrics/tokenize.json")
    splits = read_splits(place / "tokens/messages")
    assert counts["vocab_size"] == load_tokenizer(place / "tokens/tokenizer").vocab_size == 300
    assert [len(splits[name]) for name in ("train", "val", "test")] == [56, 8, 16]
    assert counts["messages"]["read"] == 120
    assert counts["instructions"]["test"]["records"] == len(read_splits(place / "tokens/instructions")["test"]) == 6
    assert counts["corpus"]["train"]["bytes"] > 8 * counts["corpus"]["val"]["bytes"]


def test_the_rest_of_the_pipeline_runs_from_tokens_to_report(place, monkeypatch):
    tokenize_into(place)
    params, tokens, metrics, log = place / "params.yaml", place / "tokens", place / "metrics", place / "log"
    models, plots, samples = place / "models", metrics / "plots", place / "samples"

    pretrain.main(
        params, tokens / "tokenizer", tokens / "corpus", models / "pretrain", place / "losses.parquet",
        samples / "pretrain.json", metrics / "pretrain.json", plots / "pretrain.csv", log, Resume(),
    )  # fmt: skip
    curve = read_csv(plots / "pretrain.csv")
    assert float(curve[-1]["val_loss"]) < float(curve[0]["val_loss"])
    assert len(read_json(samples / "pretrain.json")) == len(curve)
    assert read_json(metrics / "pretrain.json")["untrained_val_loss"] == pytest.approx(math.log(300), abs=0.1)
    windows = read_table(place / "losses.parquet")
    mean = sum(row["loss_nats"] for row in windows) / sum(row["scored_tokens"] for row in windows)
    assert mean == pytest.approx(read_json(metrics / "pretrain.json")["val"]["loss"], rel=1e-5)

    finetune_spam.main(
        params, tokens / "tokenizer", tokens / "messages", models / "pretrain", models / "finetune_spam",
        place / "predictions.parquet", metrics / "finetune_spam.json", plots / "finetune_spam.csv",
        plots / "finetune_spam_confusion.csv", log, Resume(),
    )  # fmt: skip
    predictions = read_table(place / "predictions.parquet")
    right = sum(row["label"] == row["predicted"] for row in predictions) / len(predictions)
    assert right == pytest.approx(read_json(metrics / "finetune_spam.json")["test"]["accuracy"])
    assert {row["id"] for row in predictions} == {row["id"] for row in read_splits(tokens / "messages")["test"]}
    classifier, settings = load_classifier(models / "finetune_spam")
    assert settings["padded_tokens"] == 24
    assert classifier.head.out_features == 2

    finetune_instruct.main(
        params, tokens / "tokenizer", tokens / "instructions", models / "pretrain", models / "finetune_instruct",
        place / "response_losses.parquet", samples / "finetune_instruct.json", metrics / "finetune_instruct.json",
        plots / "finetune_instruct.csv", log, Resume(),
    )  # fmt: skip
    losses = read_json(metrics / "finetune_instruct.json")
    assert losses["after"]["val_loss"] < losses["before"]["val_loss"]
    answers = read_table(place / "response_losses.parquet")
    mean = sum(row["loss_nats"] for row in answers) / sum(row["scored_tokens"] for row in answers)
    assert mean == pytest.approx(losses["after"]["test_loss"], rel=1e-5)
    tasks = [row["id"] for row in read_splits(tokens / "instructions")["test"]]
    assert [row["id"].rpartition("-")[0] for row in answers] == tasks
    assert load_gpt(models / "finetune_instruct").config == load_gpt(models / "pretrain").config

    generate.main(
        params, tokens / "tokenizer", tokens / "instructions", models / "pretrain", models / "finetune_instruct",
        place / "responses/generate.parquet", metrics / "generate.json", Resume(),
    )  # fmt: skip
    responses = read_table(place / "responses/generate.parquet")
    assert [row["model"] for row in responses] == ["before"] * 6 + ["after"] * 6

    judge.main(
        params, place / "responses/generate.parquet", place / "responses/judge.parquet",
        metrics / "judge.json", plots / "judge_scores.csv", Resume(),
    )  # fmt: skip
    scores = read_json(metrics / "judge.json")
    assert scores["control_reference"]["mean_score"] == 100
    assert scores["control_empty"]["mean_score"] == 0
    assert len(read_table(place / "responses/judge.parquet")) == 12 + 3 * 2

    ablate_spam.main(
        params, tokens / "tokenizer", tokens / "messages", models / "pretrain", place / "ablated.parquet",
        metrics / "ablate_spam" / "first.json", log, Resume(),
    )  # fmt: skip
    ids = [row["id"] for row in read_table(place / "ablated.parquet")]
    assert ids == [row["id"] for row in predictions]
    varied_scores, scores = (read_json(metrics / name) for name in ("ablate_spam/first.json", "finetune_spam.json"))
    assert varied_scores["padded_tokens"] == scores["padded_tokens"]
    assert varied_scores["train"] != scores["train"]

    (metrics / "download.json").write_text("{}")
    report.main(
        params, REPOSITORY / "dvc.yaml", metrics, samples, place / "predictions.parquet", place / "responses",
        models, place / "report.html",
    )  # fmt: skip
    page = (place / "report.html").read_text()
    assert "<td>position first</td>" in page
    assert "ablate_spam@first" in page


def test_both_finetunings_run_with_lora_and_leave_plain_weights_and_an_adapter(place, tmp_path):
    tokenize_into(place)
    values = yaml.safe_load((place / "params.yaml").read_text())
    for section, layers in {"finetune_spam": "all", "finetune_instruct": "blocks"}.items():
        values[section]["lora"] = {"rank": 2, "alpha": 2.0, "layers": layers}
    params = tmp_path / "params.yaml"
    params.write_text(yaml.safe_dump(values))
    base = tmp_path / "base"
    save_gpt(base, build_model(ModelParams(**values["model"]).config(300), seed=5))
    tokens, folder, log = place / "tokens", tmp_path / "out", tmp_path / "log"
    finetune_spam.main(
        params, tokens / "tokenizer", tokens / "messages", base, folder / "spam", folder / "predictions.parquet",
        folder / "spam.json", folder / "spam.csv", folder / "confusion.csv", log, Resume(),
    )  # fmt: skip
    finetune_instruct.main(
        params, tokens / "tokenizer", tokens / "instructions", base, folder / "instruct", folder / "losses.parquet",
        folder / "samples.json", folder / "instruct.json", folder / "instruct.csv", log, Resume(),
    )  # fmt: skip
    curve = read_csv(folder / "instruct.csv")
    assert float(curve[-1]["val_loss"]) < float(curve[0]["val_loss"])
    assert (folder / "spam" / "adapter.safetensors").exists()
    assert (folder / "instruct" / "adapter.safetensors").exists()
    load_classifier(folder / "spam")
    tuned, start = load_gpt(folder / "instruct"), load_gpt(base)
    assert (tuned.token_embedding.weight == start.token_embedding.weight).all()
    assert (tuned.blocks[0].attention.qkv.weight != start.blocks[0].attention.qkv.weight).any()


def test_load_gpt2_measures_the_sample_checkpoint_on_the_corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    raw, tokens = tmp_path / "raw", tmp_path / "tokens"
    download.main(REPOSITORY / "params.yaml", tmp_path / "store", raw, tmp_path / "download.json")
    tokenize.main(
        REPOSITORY / "params.yaml", raw / "gpt2-nano", raw / "sample-stories", raw / "sample-messages",
        raw / "sample-instructions", tokens / "tokenizer", tokens / "corpus", tokens / "messages",
        tokens / "instructions", tmp_path / "tokenize.json",
    )  # fmt: skip
    load_gpt2.main(
        REPOSITORY / "params.yaml", raw / "gpt2-nano", tokens / "corpus", tmp_path / "model",
        tmp_path / "losses.parquet", tmp_path / "metrics.json",
    )  # fmt: skip
    metrics = read_json(tmp_path / "metrics.json")
    assert metrics["tensors_mapped"] == 4 + 12 * 3
    assert metrics["val"]["loss"] < 1.0
    assert hparams(load_gpt(tmp_path / "model").config) == read_json(raw / "gpt2-nano" / "hparams.json")
