import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from markupsafe import Markup

from scratchlm.data.catalogue import SourcesParams, wanted_files
from scratchlm.judge.pairwise import pair_metrics
from scratchlm.judge.reference import ReferenceJudge
from scratchlm.judge.scoring import JUDGEMENT_SCHEMA, control_records, judge_records, judge_scores
from scratchlm.model.config import gpt2_config
from scratchlm.report import page as report
from scratchlm.report.answers import answered_tasks, examples, mean_of
from scratchlm.report.graph import drawn_edges, graph_svg, stage_graph
from scratchlm.report.inputs import Inputs, collect
from scratchlm.report.page import learning_rates, render
from scratchlm.report.tables import format_number, format_percent, format_signed, metric_tables, thinned
from scratchlm.run.display import shortened
from scratchlm.run.errors import UserError
from scratchlm.run.files import read_json, read_table, sha256_of, write_csv, write_json, write_table, write_text
from scratchlm.run.params import load_yaml
from scratchlm.tasks.bootstrap import paired_differences
from scratchlm.tasks.generation import RESPONSE_SCHEMA
from scratchlm.tasks.intervals import paired_share_interval
from scratchlm.tasks.language_model import LOSS_SCHEMA
from scratchlm.tasks.reward import REWARD_SCHEMA
from scratchlm.tasks.scores import PREDICTION_SCHEMA, classification_scores, prediction_rows

REPOSITORY = Path(__file__).resolve().parents[3]
PROFILE = REPOSITORY / "profiles" / "sample.yaml"
SCRIPT = "<script>alert('spam')</script>"
SPLITS = ("train", "val", "test")


def make_project(root: Path) -> Path:
    """What all stages of the sample profile leave behind, in their layout, through their writers."""
    metrics, data = root / "metrics", root / "data"
    values = load_yaml(PROFILE)
    write_text(root / "params.yaml", yaml.safe_dump(values, sort_keys=False))
    shutil.copy(REPOSITORY / "dvc.yaml", root / "dvc.yaml")
    (root / "profiles").mkdir()
    for name in ("sample", "book"):
        shutil.copy(REPOSITORY / "profiles" / f"{name}.yaml", root / "profiles")
    write_json(data / "code" / "report.json", {"packages": {"torch": "2.99.1", "numpy": "2.88"}})
    write_tokens(data / "tokens")
    write_downloads(root)
    counts = {"tokens": 250_000, "bytes": 1_000_495, "documents": 900, "bytes_per_token": 4.00198}
    records = {"records": 100, "spam": 50, "tokens": 2_000}
    write_json(
        metrics / "tokenize.json",
        {
            "vocab_size": 2048,
            "finetuning_vocab_size": 1024,
            "corpus": {"train": counts, "val": counts},
            "messages": {"read": 2_000, "duplicates_across_splits": 3, **dict.fromkeys(SPLITS, records)},
            "instructions": {"duplicates_across_splits": 0, **dict.fromkeys(SPLITS, {"records": 9, "tokens": 99})},
        },
    )
    corpus = {"loss": 2.5371, "perplexity": 12.6429, "bits_per_byte": 0.914631}
    write_json(
        metrics / "pretrain.json",
        {"train": corpus, "val": corpus, "parameters": 1_234_567, "untrained_val_loss": 7.64321},
    )
    for size, loss, n in (
        ("nano", 1.87654, 900_001),
        ("124M", 3.2, 124_412_160),
    ):  # the second one is left over from another run
        write_json(
            metrics / "load_gpt2" / f"{size}.json",
            {"val": corpus | {"loss": loss}, "parameters": n, "tensors_mapped": 40},
        )
    write_spam(root)
    for stage in ("pretrain", "finetune_spam", "finetune_instruct"):
        write_csv(metrics / "plots" / f"{stage}_steps.csv", step_rows())
    losses = {f"{split}_loss": 4.4567 for split in SPLITS}
    write_json(metrics / "finetune_instruct.json", {"before": losses, "after": dict.fromkeys(losses, 0.61239)})
    for stage in ("pretrain", "finetune_instruct"):
        write_csv(metrics / "plots" / f"{stage}.csv", curve())
    write_preferences(root, "dpo")
    write_rewards(root, "bradley_terry")
    write_reinforced(root, "grpo")
    asked = {"id": "task-9", "instruction": "Name a bird.", "input": "", "output": "A heron.", "finished": True}
    figures = {"train_loss": 2.0, "val_loss": 2.5}
    write_json(
        data / "samples" / "pretrain.json",
        [{"evaluation": i, **figures, "text": f"Sara was here {i}"} for i in range(4)],
    )
    write_json(
        data / "samples" / "finetune_instruct.json",
        [{"evaluation": i, **figures, "responses": [asked | {"response": f"A duck {i}"}]} for i in range(4)],
    )
    write_responses(root, make_responses())
    for name in ("pretrain", "gpt2-nano", "gpt2-124M", "finetune_spam", "finetune_instruct"):
        write_text(data / "models" / name / "model.safetensors", f"weights of {name}")
        write_json(data / "models" / name / "config.json", {"gpt": gpt2_config("nano", 2048, 256).model_dump()})
    return root


def write_tokens(folder: Path) -> None:
    """Three messages a split: 3, 4 and 5 tokens, of 7 in all, one of test as in train; one instruction of 2 + 2."""
    columns = {"messages": {"token_ids": 3}, "instructions": {"prompt_token_ids": 1, "response_token_ids": 1}}
    for name, counts in columns.items():
        schema = pa.schema({"text": pa.string(), **dict.fromkeys(counts, pa.list_(pa.int32()))})
        for split in SPLITS:
            first = 100 if split == "test" else 0
            lists = [list(range(first + i, first + 3 + 2 * i)) for i in range(max(counts.values()))]
            rows = [{"text": f"{first * i} pm", **dict.fromkeys(counts, found)} for i, found in enumerate(lists)]
            write_table(folder / name / f"{split}.parquet", rows, schema)


def write_downloads(root: Path) -> None:
    params = load_yaml(root / "params.yaml")
    found: dict[str, Any] = {}
    for source, file in wanted_files(SourcesParams(**params["sources"]), params["gpt2_sizes"], params["pretrained"]):
        entry = found.setdefault(source.name, {"files": 0, "bytes": 0, "sha256": {}})
        entry["files"] += 1
        entry["bytes"] += 1_000
        entry["sha256"][file.name] = "ab" * 32
    write_json(root / "data" / "sources.json", found)


def write_spam(root: Path) -> None:
    texts = ["see you", "WIN a prize", "call me", f"Grüße 🎉 {SCRIPT}", "x" * 900]
    messages = [{"id": f"sms-{i:05d}", "label": i % 2, "text": text} for i, text in enumerate(texts)]
    spam = np.array([0.02, 0.97, 0.71, 0.04, 0.1])
    predictions = prediction_rows(messages, np.stack([1 - spam, spam], axis=1), ("ham", "spam"))
    write_table(root / "data" / "predictions" / "finetune_spam.parquet", predictions, PREDICTION_SCHEMA)
    alike = [row | {"predicted": "ham"} for row in predictions]
    write_table(root / "data" / "predictions" / "baseline_spam.parquet", alike, PREDICTION_SCHEMA)
    plots = root / "metrics" / "plots"
    write_csv(plots / "finetune_spam.csv", [row | {"train_accuracy": 0.9, "val_accuracy": 0.8} for row in curve()])
    scores = {
        "accuracy": 0.98765,
        "accuracy_low": 0.95432,
        "accuracy_high": 0.99123,
        "precision": 0.98,
        "recall": 0.99,
        "f1": 0.98499,
        "auroc": 0.99876,
        "loss": 0.0456,
        "confusion": {"ham_as_ham": 2, "ham_as_spam": 1, "spam_as_ham": 1, "spam_as_spam": 1},
    }
    write_json(
        root / "metrics" / "finetune_spam.json",
        {**dict.fromkeys(SPLITS, scores), "padded_tokens": 60, "trainable_parameters": 900_259},
    )
    gain = {"accuracy": 0.2, "accuracy_low": -0.15, "accuracy_high": 0.4123}
    baseline = {**dict.fromkeys(SPLITS, scores), "strength": 10.0, "trainable_parameters": 1_234}
    write_json(root / "metrics" / "baseline_spam.json", baseline | {"gain_of_finetune_spam": gain})


def write_preferences(root: Path, name: str, stage: str = "finetune_preference") -> None:
    scores = {"loss": 0.40123, "accuracy": 0.87654, "margin": 1.23456, "kl_per_token": 0.22222}
    write_json(root / "metrics" / stage / f"{name}.json", dict.fromkeys(SPLITS, scores))
    measured = {f"{split}_{score}": 0.5 for split in ("train", "val") for score in ("accuracy", "margin")}
    write_csv(root / "metrics" / "plots" / stage / f"{name}.csv", [row | measured for row in curve()])


def write_rewards(root: Path, name: str) -> None:
    write_preferences(root, name, "reward_model")
    rows = [{"id": f"pair-{i}", "loss": 0.5, "chosen_reward": 1.0, "rejected_reward": i} for i in range(4)]
    write_table(root / "data" / "losses" / "reward_model" / f"{name}.parquet", rows, REWARD_SCHEMA)


def write_reinforced(root: Path, name: str) -> None:
    scores = {"reward_before": 0.5123, "reward": 0.6234, "gain": 0.1111, "gain_low": -0.0222, "gain_high": 0.2111}
    write_json(
        root / "metrics" / "reinforce" / f"{name}.json", dict.fromkeys(SPLITS, scores | {"finished_share": 0.954})
    )
    measured = [{"step": 20 * i, "val_reward": 0.3217 + i, "val_tokens": 7.0} for i in range(4)]
    write_csv(root / "metrics" / "plots" / "reinforce" / f"{name}.csv", measured)
    steps = [{"step": i, "reward": 0.1 * i, "tokens": 7.0, "kl": 0.0, "entropy": 1 / i} for i in range(1, 15)]
    write_csv(root / "metrics" / "plots" / "reinforce_steps" / f"{name}.csv", steps)
    asked = {"id": "pair-9", "instruction": "Name a fish.", "input": "", "output": "A carp.", "finished": True}
    samples = [
        {"evaluation": i, "val_reward": row["val_reward"], "responses": [asked | {"response": f"A cod {i} of {name}"}]}
        for i, row in enumerate(measured)
    ]
    write_json(root / "data" / "samples" / "reinforce" / f"{name}.json", samples)


def curve() -> list[dict[str, float]]:
    return [
        {"step": 20 * i, "epoch": i / 4, "learning_rate": 1e-3 / (i + 1), "train_loss": 7.0 / (i + 1), "val_loss": 7.5}
        for i in range(4)
    ]


def step_rows() -> list[dict[str, float]]:
    return [{"step": i, "loss": 7.0 / i, "gradient_norm": 2.0, "learning_rate": 1e-3} for i in range(1, 61)]


def make_responses(*models: str, n: int = 30) -> list[dict[str, Any]]:
    """Answers of the variants; those of all but the base are mostly right, and dpo is right once more."""
    return [
        {
            "id": f"task-{i:05d}",
            "model": model,
            "instruction": f"Double <b>{i}</b>.",
            "input": "",
            "output": f"It is {2 * i}.",
            "response": f"It is {2 * i}." if model != "base" and (i % 3 or i == 3 and model == "dpo") else f"no {i}",
            "finished": model != "base",
        }
        for model in models or ("base", "instruct", "dpo", "grpo")
        for i in range(n)
    ]


def write_responses(root: Path, responses: list[dict[str, Any]], failing: int = 0) -> None:
    judge = ReferenceJudge()
    judged = list(judge_records(judge, [*responses, *control_records(responses, 3)]))
    for row in [row for row in judged if row["model"] == "instruct"][:failing]:
        row |= {"score": None, "reason": "", "raw_reply": "{"}
    for model in dict.fromkeys(row["model"] for row in responses):
        answers = [row for row in responses if row["model"] == model]
        write_table(root / "data" / "responses" / "generate" / f"{model}.parquet", answers, RESPONSE_SCHEMA)
        counts = {"responses": 30, "finished": 30, "exact_matches": 20}
        write_json(root / "metrics" / "generate" / f"{model}.json", counts)
    write_table(root / "data" / "responses" / "judge.parquet", judged, JUDGEMENT_SCHEMA)
    write_json(root / "metrics" / "judge.json", judge_scores(judged, seed=1) | {"judge": judge.identity})


def change_params(root: Path, **changes: Any) -> None:
    params = load_yaml(root / "params.yaml")
    for key, value in changes.items():
        params[key] = params[key] | value if isinstance(value, dict) else value
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def options(root: Path) -> dict[str, Path]:
    return {
        "params": root / "params.yaml",
        "pipeline": root / "dvc.yaml",
        "profiles": root / "profiles",
        "code": root / "data" / "code" / "report.json",
        "sources": root / "data" / "sources.json",
        "tokens": root / "data" / "tokens",
        "metrics": root / "metrics",
        "losses": root / "data" / "losses",
        "samples": root / "data" / "samples",
        "predictions": root / "data" / "predictions",
        "responses": root / "data" / "responses",
        "models": root / "data" / "models",
    }


def page_of(root: Path) -> str:
    return render(collect(Inputs(**options(root))))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose page shows few charts: they take the time, and `page` has them."""
    for name in ("curve_chart", "step_chart", "roc_chart", "calibration_chart", "length_chart", "score_chart"):
        monkeypatch.setattr(report, name, lambda *_: Markup("<svg></svg>"))
    return shutil.copytree(made, tmp_path, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def page(made: Path) -> str:
    return page_of(made)


class Checker(HTMLParser):
    """Texts and attributes of a page; complains if an element that must be closed is not."""

    VOID = {"meta", "br", "wbr", "path", "use", "rect", "polyline", "input"}

    def __init__(self, page: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: set[str] = set()
        self._open: list[str] = []
        self.feed(page)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self._open.pop() == tag


def test_the_page_holds_the_numbers_of_every_stage(project: Path) -> None:
    page = page_of(project)
    for number in ["7.643", "2.537", "12.64", "0.9146", "1.877", "0.985", "0.9988", "4.457", "0.6124", "1,234,567"]:
        assert number in page, number
    assert "98.8\N{NO-BREAK SPACE}%" in page
    assert "95.4\N{NO-BREAK SPACE}% to 99.1\N{NO-BREAK SPACE}%" in page
    mean = read_json(project / "metrics" / "judge.json")["instruct"]["mean_score"]
    assert f"{mean:.4g}" in page
    assert sha256_of(project / "data" / "models" / "pretrain" / "model.safetensors") in page
    assert "CC0 1.0" in page
    assert "max_micro_batch_size" in page
    assert page.count(f"{gpt2_config('nano', 2048, 256).n_parameters:,}") == 2  # of the two that are finetuned
    assert "Sara was here 3" in page and "A duck 0" in page


@pytest.mark.long
def test_the_page_is_well_formed_and_its_contents_lead_somewhere(page: str) -> None:
    found = Checker(page)
    anchors = {value for _, name, value in found.attributes if name == "id"}
    assert {value for tag, name, value in found.attributes if tag == "a" and name == "href"} <= {
        f"#{anchor}" for anchor in anchors
    }
    ids = [value for _, name, value in found.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_texts_of_messages_and_tasks_are_escaped(page: str) -> None:
    assert page.count("<script") == 1
    assert "Grüße 🎉 &lt;script&gt;alert(&#39;spam&#39;)&lt;/script&gt;" in page
    assert "Double &lt;b&gt;" in page


def test_no_text_acts_on_the_page(project: Path) -> None:
    root, evil = project, "\x1b[31m\0 \u202eabc\u2066 \x85"
    responses = [{**row, "response": evil, "instruction": evil} for row in make_responses()]
    write_responses(root, responses)
    change_params(root, pretrain={"sample_prompt": evil})
    page = render(collect(Inputs(**options(root))))
    assert not set(page) & set("\x1b\0\u202e\u2066\x85")
    assert page.count("\\u001b[31m\\u0000 \\u202eabc\\u2066 \\u0085") > len(responses) // 10


def test_the_most_confident_mistakes_come_first(page: str) -> None:
    assert page.index("sms-00003") < page.index("sms-00002")
    assert "2 of 5 test messages" in page
    assert "sms-00001" not in page


def test_nothing_outside_the_page_is_loaded_and_only_its_own_script_runs(page: str) -> None:
    found = Checker(page)
    loading = [value for _, name, value in found.attributes if name in ("src", "href", "xlink:href", "action", "data")]
    assert all(value.startswith("#") for value in loading)
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)'\"]*)", page))
    assert not found.tags & {"link", "img", "iframe", "object", "embed", "base"}
    assert "@import" not in page
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (value for tag, name, value in found.attributes if tag == "meta" and value.startswith("default-src"))
    assert policy.startswith(f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}';")
    assert not re.search(r"fetch|XMLHttpRequest|import\(|innerHTML|eval|https?:", script)
    assert not {name for _, name, _ in found.attributes if name.startswith("on")}


def test_headings_are_in_order_and_every_picture_says_what_it_shows(page: str) -> None:
    levels = [int(level) for level in re.findall(r"<h([1-6])\b", page)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    pictures = re.findall(r"<svg[^>]*>", page)
    assert all(re.search(r'role="img" aria-label="[^"]{8,}"', picture) for picture in pictures)


def colours(page: str) -> dict[str, dict[str, str]]:
    """The variables of the style sheet in each theme; print begins with those of the light one."""
    sheets = re.findall(r":root \{(.*?)\}", page, flags=re.DOTALL)
    found = [dict(re.findall(r"--(\w+): (#\w+);", sheet)) for sheet in sheets]
    return dict(zip(("light", "dark", "print"), found, strict=True))


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark", "print"])
def test_texts_and_lines_have_the_contrast_of_wcag_aa(page: str, theme: str) -> None:
    assert round(contrast("#000", "#ffffff"), 6) == 21
    found = colours(page)[theme]
    for ground in ("paper", "raised"):
        texts = {name: contrast(found[name], found[ground]) for name in ("ink", "soft", "first")}
        assert min(texts.values()) >= 4.5, (ground, texts)
    lines = {name: contrast(found[name], found["paper"]) for name in ("first", "second", "third", "fourth", "fifth")}
    assert min(lines.values()) >= 3, lines


def test_texts_of_charts_are_11_pixels_on_a_telephone(page: str) -> None:
    """The least width of a chart in pixels, by the width of its view box, times its smallest font."""
    for chart in re.findall(r'<svg class="(?:chart|graph)".*?</svg>', page, flags=re.DOTALL):
        box, width = (float(re.search(rf"{name}([\d.]+)", chart)[1]) for name in ('viewBox="0 0 ', "min-width: ?"))
        sizes = re.findall(r"font: ([\d.]+)px|font-size: ([\d.]+)px", chart)
        smallest = min([float(size or other) for size, other in sizes] or [12.5])  # the graph's is in the style sheet
        assert smallest * width / box >= 11, re.search(r'aria-label="([^"]*)"', chart)[1]


@pytest.mark.long
def test_the_build_is_named_by_its_profile_or_by_what_differs_from_the_nearest(project: Path) -> None:
    page = page_of(project)
    assert "<b>sample</b>, unchanged" in page and "Changed from profile" not in page
    assert "torch 2.99.1" in page and f'sample-stories <a href="#sources"><code>{"ab" * 5}</code>' in page
    change_params(project, seed=7, device="cuda", pretrain={"epochs": 2.5}, model={"norm": "<b>"})
    page = page_of(project)
    rows = re.findall(r"<tr><td><code>(.*?)</code></td><td><del>(.*?)</del></td><td><ins>(.*?)</ins>", page)
    assert rows == [("seed", "123", "7"), ("model.norm", "layer", "&lt;b&gt;"), ("pretrain.epochs", "1.0", "2.5")]
    assert '<a href="#changes">3</a> differ from the nearest profile, <b>sample</b>' in page
    change_params(project, precision="float32", judge={"server": "http://me:secret@there"})
    rows = re.findall(r"<tr><td><code>(.*?)</code></td><td><del>(.*?)</del></td><td><ins>(.*?)</ins>", page_of(project))
    assert ("device", "cpu", "cuda") in rows and ("judge.server", "–", "http://***@there") in rows
    write_text(project / "profiles" / "ours.yaml", (project / "params.yaml").read_text())
    assert "secret" not in (page := page_of(project)) and "<b>ours</b>, unchanged" in page
    shutil.rmtree(project / "profiles")
    assert "<dd>own parameters</dd>" in page_of(project)


def test_the_first_screen_has_the_main_results_with_their_intervals_and_changes(project: Path) -> None:
    page = page_of(project)
    shown = [re.sub(r"<[^>]*>", " ", card) for card in re.findall(r'<div class="card">(.*?)\n</div>', page, re.DOTALL)]
    texts = [" ".join(card.split()) for card in shown]
    assert texts[0].startswith("Pretrained model 2.537 nats per token, val loss −5.106 from 7.643 before training")
    assert texts[1].startswith("Classifier 98.8 % test accuracy, 95 % interval 95.4 % to 99.1 % bag of words 98.8 %")
    assert "+20.0 points (−15.0 to +41.2)" in texts[1] and texts[1].endswith("test messages also in train: 1 of 3")
    assert texts[2].startswith("Assistant 0.6124 nats per response token, val loss −3.844 from 4.457 before training")
    assert [text.split()[:3] for text in texts[3:]] == [["Answers", "of", name] for name in ("instruct", "dpo", "grpo")]
    assert "points against instruct (−3.3 to +10.0)" in texts[4] and "20 of 30 equal the reference answer" in texts[4]
    assert ">loss 2.537</text>" in page and ">20 of 30 exact</text>" in page and ">reward 0.6234</text>" in page


def test_every_answer_is_in_a_table_that_needs_no_script(project: Path) -> None:
    page = page_of(project)
    (table,) = re.findall(r'<details id="answers">.*?</details>', page, flags=re.DOTALL)
    assert table.count("<tr><td") == 30 and table.count("data-score=") == 30 * 4
    assert all(f"Double &lt;b&gt;{i}&lt;/b&gt;." in table for i in range(30))
    assert '<div class="filter" hidden>' in table and "<button" not in page
    (found,) = re.findall(r'<td data-label="instruct" data-score="([^"]*)"', table)[1:2]
    assert found == "100.0"


def test_the_learning_rate_of_every_step_is_drawn() -> None:
    training = load_yaml(PROFILE)["pretrain"]
    rates = learning_rates(training, 58)
    assert [row["step"] for row in rates] == list(range(58))
    assert [rates[step]["learning_rate"] for step in (0, 19, 20)] == [0.0001, 0.002, 0.002]
    assert rates[40]["learning_rate"] == pytest.approx(0.00097155, rel=1e-6)  # of metrics/plots/pretrain.csv
    assert [row["step"] for row in learning_rates(training, 1000)][:: report.MAX_RATES - 1] == [0, 999]


def test_the_steps_of_a_training_are_drawn_without_a_gradient_norm_if_nothing_was_clipped(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{name: value for name, value in row.items() if name != "gradient_norm"} for row in step_rows()]
    write_csv(project / "metrics" / "plots" / "finetune_spam_steps.csv", rows)
    drawn = {}

    def note(name: str, steps: Any, labels: Any) -> Markup:
        drawn[name] = len(steps), [*labels]
        return Markup("<svg></svg>")

    monkeypatch.setattr(report, "step_chart", note)
    page = page_of(project)
    assert drawn.pop("reinforce-grpo")[0] == 14
    both = 60, ["loss", "gradient_norm"]
    assert drawn == {"pretrain": both, "finetune_spam": (60, ["loss"]), "finetune_instruct": both}
    assert page.count(": the training steps, and the mean of the last ten") == 3


def test_lengths_of_texts_and_the_used_vocabulary_are_counted(project: Path) -> None:
    (section,) = re.findall(r'<section id="tokens">.*?</section>', page_of(project), flags=re.DOTALL)
    messages, instructions = (re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr><td.*", section))
    assert messages[:6] == ["messages", "9", "3", "4", "5", "5"]
    assert [text.replace("\xa0", " ") for text in messages[6:]] == ["0.7 %", "50.0 %"]  # 7 of 1,024; all of test
    assert instructions[:6] == ["instructions", "3", "6", "6", "6", "6"]
    assert section.count("<svg") == 2


@pytest.mark.long
def test_fresh_processes_write_the_same_bytes(project: Path) -> None:
    arguments = [text for name, path in options(project).items() for text in (f"--{name}", str(path))]
    pages = []
    for hash_seed in ("0", "1"):
        target = project / hash_seed / "report.html"
        subprocess.run(
            [sys.executable, "-m", "stages.report", *arguments, "--page", target, "--log", project / "log.jsonl"],
            check=True,
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
        )
        pages.append(target.read_bytes())
    assert pages[0] == pages[1]
    assert pages[0].count(b"<svg") == 21


def test_the_page_tells_nothing_of_time_and_place(page: str, tmp_path: Path) -> None:
    assert str(tmp_path.parent) not in page and str(REPOSITORY) not in page
    assert "matplotlib" not in page.lower()
    assert not re.search(r"\d\d:\d\d", page)


@pytest.mark.long
def test_in_precision_exact_the_page_is_the_same_for_every_device_and_number_of_threads(project: Path) -> None:
    pages = []
    for device, threads in (("cpu", 2), ("cuda", "auto")):
        change_params(project, precision="exact", device=device, threads=threads)
        pages.append(page_of(project))
    assert pages[0] == pages[1]
    assert "<span>precision exact</span> <span>seed 123</span>" in pages[0] and "but device and threads" in pages[0]
    change_params(project, precision="float32", device="cpu", threads=2)
    facts = "<span>precision float32</span> <span>device cpu</span> <span>2 threads</span> <span>seed 123</span>"
    assert facts in page_of(project)
    change_params(project, precision="float32", device="cpu", threads=3)
    assert ">3<" in page_of(project) and "but device and threads" not in page_of(project)


def test_reading_the_report_module_loads_no_torch() -> None:
    code = "import sys, scratchlm.report.page; sys.exit('torch' in sys.modules or 'pyplot' in str(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_leftovers_of_other_gpt2_sizes_are_not_shown(project: Path) -> None:
    page = page_of(project)
    assert "124,412,160" not in page and "124M" not in page


def test_every_gpt2_size_asked_for_is_shown(project: Path) -> None:
    change_params(project, gpt2_sizes=["nano", "124M"])
    write_downloads(project)
    page = page_of(project)
    assert "124,412,160" in page and "1.877" in page and "load_gpt2@124M" in page


def test_ones_own_data_is_shown_by_its_path_or_manifest_without_a_licence(project: Path) -> None:
    corpus, messages = "data/mine/corpus.jsonl", "data/mine/texts.csv"
    change_params(project, sources={"corpus": {"manifest": corpus}, "messages": {"path": messages}})
    found = read_json(project / "data" / "sources.json")
    found |= {"own-corpus": found.pop("sample-stories"), "own-messages": found.pop("sample-messages")}
    write_json(project / "data" / "sources.json", found)
    page = page_of(project)
    assert f"weights on <b>{corpus}</b>" in page and f"on {messages}," in page
    assert page.count("Your own data: data/mine/") == 2 and "Licence: yours" not in page


def test_without_loaded_models_there_is_a_page_without_them(project: Path) -> None:
    base = {"base": "pretrain"}
    change_params(project, gpt2_sizes=[], finetune_spam=base, finetune_instruct=base, variants=base)
    shutil.rmtree(project / "metrics" / "load_gpt2")
    write_downloads(project)
    page = page_of(project)
    assert "load_gpt2" not in page and "1.877" not in page
    Checker(page)


def test_a_pretrained_base_has_its_bits_per_byte_and_no_loss_to_compare(project: Path) -> None:
    base = {"base": "smollm2-135m"}
    change_params(project, gpt2_sizes=[], pretrained=["smollm2-135m"], finetune_spam=base, finetune_instruct=base)
    change_params(project, variants=base)
    scores = {"loss": 2.98, "perplexity": 19.7, "bits_per_byte": 0.91234}
    write_json(project / "metrics/load_pretrained/smollm2-135m.json", {"val": scores, "parameters": 134_515_008})
    write_downloads(project)
    page = page_of(project)
    Checker(page)
    assert ">load_pretrained@smollm2-135m</text>" in page and ">0.9123 bits per byte</text>" in page
    assert "134,515,008" in page and "gpt2-nano</code> and" not in page


@pytest.mark.long
def test_variants_of_pretraining_are_shown_with_the_paired_change_of_their_loss(project: Path) -> None:
    assert "Ablations of pretraining" not in page_of(project)
    change_params(project, pretrain_ablations={"shared": {"size": "custom", "custom": {"n_kv_heads": 1}}, "b": {}})
    scores = {"loss": 2.4, "perplexity": 11.0, "bits_per_byte": 0.85}
    found = {"val": scores, "parameters": 1_000_009, "kv_cache_bytes_per_token": 1_536}
    losses = {
        "pretrain": [2.0, 6.0, 4.0],
        "ablate_pretrain/shared": [1.5, 5.5, 3.5],
        "ablate_pretrain/b": [2.5, 7.5, 4.5],
    }
    for name, sums in losses.items():
        rows = [{"id": f"val-{i}", "loss_nats": loss, "scored_tokens": 2} for i, loss in enumerate(sums)]
        write_table(project / "data" / "losses" / f"{name}.parquet", rows, LOSS_SCHEMA)
        if "/" in name:
            write_json(project / "metrics" / f"{name}.json", found)
    (table,) = re.findall(r"<h3>Ablations of pretraining</h3>.*?</table>", page_of(project), flags=re.DOTALL)
    original, shared, other = (re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr><td>.*", table))
    assert original == ["as in pretrain", "", "1,234,567", "3,072", "2.537", "", "", "0.9146"]
    assert shared[:2] == ["shared", "size custom, custom.n_kv_heads 1"]
    assert shared[2:] == ["1,000,009", "1,536", "2.4", "−0.250", "−0.250 to −0.250", "0.85"]  # of every window
    assert other[5:7] == ["+0.417", "+0.083 to +0.750"]  # the mean of 0.25, 0.75 and 0.25


def test_every_preference_run_has_its_metrics_and_its_curve(project: Path) -> None:
    change_params(project, preference_runs={"dpo": {}, "ipo": {"loss": "ipo"}}, reward_runs={"a": {}, "b": {}})
    change_params(project, reinforce_runs={"ppo": {"reward": "models/reward_model/a"}})
    with pytest.raises(UserError, match=r"finetune_preference/ipo\.json"):
        page_of(project)
    write_preferences(project, "ipo")
    for name in ("a", "b"):
        write_rewards(project, name)
    with pytest.raises(UserError, match=r"reinforce/ppo\.json"):
        page_of(project)
    write_reinforced(project, "ppo")
    page = page_of(project)
    assert page.count("<td>87.7\N{NO-BREAK SPACE}%") == 5 * 3 and page.count(">87.7\N{NO-BREAK SPACE}% of pairs<") == 5
    runs = {"finetune_preference": ("dpo", "ipo"), "reward_model": ("bradley_terry", "a", "b")}
    for stage, names in (runs | {"reinforce": ("grpo", "ppo")}).items():
        for name in names:
            assert f"<figcaption>{stage}/{name}</figcaption>" in page
            assert f"{stage}@{name}" in page
    assert page.count("accuracy over confidence on the test pairs") == 3
    Checker(page)
    fewer = {
        "preference_runs": {}, "reward_runs": {}, "reinforce_runs": {}, "variants": {"instruct": "finetune_instruct"},
    }  # fmt: skip
    values = load_yaml(project / "params.yaml") | fewer
    (project / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    without = re.sub(r'<h3 id="changes">.*?</table>', "", page_of(project), flags=re.DOTALL)
    assert "finetune_preference/" not in without and "finetune_preference@" not in without
    assert "reward_model/" not in without and "reward_model@" not in without
    assert "reinforce/" not in without and "Reinforcement" not in without


@pytest.mark.long
def test_rewards_before_and_after_are_one_table_and_responses_are_shown_over_the_training(project: Path) -> None:
    page = page_of(project)
    (table,) = re.findall(r"<h3>Reinforcement learning</h3>.*?</table>", page, flags=re.DOTALL)
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr><td data.*", table)]
    assert [row[:2] for row in rows] == [["grpo", split] for split in SPLITS]
    assert rows[0][2:] == ["0.5123", "0.6234", "+0.111 (−0.022 to +0.211)", "95.4\N{NO-BREAK SPACE}%"]
    assert page.count("A cod 3 of grpo") == 1 and "3.322" in page


def test_classifiers_are_compared_in_one_table_paired_by_message(project: Path) -> None:
    """Of five messages finetune_spam misses two; a baseline that says ham to all misses another two of label 1."""
    change_params(project, spam_ablations={"random_weights": {"pretrained": False, "lora": None}})
    rows = read_table(project / "data" / "predictions" / "finetune_spam.parquet")
    right = [row | {"predicted": row["label"]} for row in rows]
    write_table(project / "data" / "predictions" / "ablate_spam" / "random_weights.parquet", right, PREDICTION_SCHEMA)
    write_json(
        project / "metrics" / "ablate_spam" / "random_weights.json",
        read_json(project / "metrics" / "finetune_spam.json"),
    )
    (table,) = re.findall(r"<h3>Against other classifiers</h3>.*?</table>", page_of(project), flags=re.DOTALL)
    finetuned, baseline, random = (
        re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr><td data.*", table)
    )
    assert (finetuned[0], finetuned[2], finetuned[-1]) == ("finetune_spam", "900,259", "–")
    assert (baseline[0], baseline[2]) == ("baseline_spam", "1,234")
    wrong = [row["predicted"] != row["label"] for row in rows]
    missed = [row["label"] == "spam" for row in rows]
    change = 100 * (sum(wrong) - sum(missed)) / len(rows)
    assert baseline[-1].startswith(f"{change:+.1f} (")
    assert random[:2] == ["random_weights", "pretrained false, lora null"]
    low, high = paired_share_interval(sum(wrong), 0, len(rows))
    assert random[-1] == f"{100 * sum(wrong) / len(rows):+.1f} ({100 * low:+.1f} to {100 * high:+.1f})".replace(
        "-", "−"
    )


def test_the_variants_of_the_assistant_are_compared_in_one_table_paired_by_task(project: Path) -> None:
    (table,) = re.findall(r"<h3>The variants of the assistant</h3>.*?</table>", page_of(project), flags=re.DOTALL)
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr><td data.*", table)]
    base, instruct, dpo, _ = rows
    assert base[:4] == ["base", "gpt2-nano", "20", "30"]
    scores = {
        name: [row["score"] for row in read_table(project / "data/responses/judge.parquet") if row["model"] == name]
        for name in ("base", "instruct", "dpo")
    }
    mean = read_json(project / "metrics" / "judge.json")["instruct"]
    interval = f"{mean['mean_low']:.4g} to {mean['mean_high']:.4g}"
    assert instruct[4:] == [f"{mean['mean_score']:.4g} ({interval})", "–"]
    gain = sum(scores["dpo"]) / 30 - sum(scores["instruct"]) / 30
    found = paired_differences({"": tuple(mean_of(scores[name]) for name in ("instruct", "dpo"))})[""].interval
    assert found and dpo[-1] == f"+{gain:.1f} ({found[0]:+.1f} to {found[1]:+.1f})".replace("-", "−")
    assert base[-1].startswith("−")


def test_only_the_variants_of_params_yaml_are_shown(project: Path) -> None:
    values = load_yaml(project / "params.yaml") | {"variants": {"instruct": "finetune_instruct"}}
    (project / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    page = page_of(project)
    assert 'data-label="instruct"' in page
    assert 'data-label="base"' not in page and "mean score of dpo" not in page
    Checker(page)


def test_failures_of_the_judge_are_counted_and_not_ranked(project: Path) -> None:
    write_responses(project, make_responses(), failing=2)
    page = page_of(project)
    assert re.search(r"<td>instruct</td><td class=\"number\">30</td><td class=\"number\">2</td>", page)
    shown = examples(answered_tasks(collect(Inputs(**options(project))).responses))
    assert not {"task-00000", "task-00001"} & {row["id"] for rows in shown.values() for row in rows}


@pytest.mark.long
def test_the_trust_in_a_language_model_is_one_table(project: Path) -> None:
    assert "Verdict: " not in page_of(project)
    path = project / "metrics" / "judge.json"
    trust = {"failed_share": 0.02, "repeated": 5, "spread": 1.5, "length_correlation": 0.25, "verdict": "it is <b>"}
    write_json(path, read_json(path) | {"trust": trust})
    page = page_of(project)
    assert "<p>Verdict: it is &lt;b&gt;.</p>" in page
    controls = re.search(r"<h3>Controls</h3>.*?</table>", page, flags=re.DOTALL)[0]
    assert re.findall(r"<td[^>]*>(.*?)</td>", controls)[:4] == ["the reference answer", "100", "100", "100 to 100"]
    assert re.search(r"over 5 that were judged again: 1\.5</li>\s*<li>Spearman’s .* of its responses: 0\.25</li>", page)
    assert "second judge" not in page and "reverse order" not in page
    agreement = {"items": 40, "alpha": 0.8125, "judge": {"backend": "reference"}}
    reordered = {"reordered": 8, "reordered_changed_share": 0.25, "reordered_mean_change": 1.5}
    write_json(path, read_json(path) | {"trust": trust | reordered, "agreement": agreement})
    page = page_of(project)
    assert "when 8 responses are judged in reverse order: 25.0\xa0%, by 1.5 points on average</li>" in page
    assert "second judge (reference) on 40 responses: Krippendorff’s α 0.8125, Spearman’s ρ –</li>" in page
    agreement["judge"]["model"] = "<b>phi3"
    write_json(path, read_json(path) | {"agreement": agreement})
    assert "second judge (&lt;b&gt;phi3) on" in page_of(project)
    del trust["spread"], trust["length_correlation"]
    write_json(path, read_json(path) | {"trust": trust})
    assert "Spearman’s correlation" not in page_of(project)


@pytest.mark.long
def test_win_rates_are_one_table(project: Path) -> None:
    assert "Pairs of responses" not in page_of(project)
    path = project / "metrics" / "judge.json"
    records = [
        {"win": win, "consistent": True, "response": "a", "baseline_response": "b"}
        for win in (1.0, 1.0, 0.5, 0.0, None)
    ]
    write_json(path, read_json(path) | {"pairwise": {"judge": {}, "dpo_over_<b>": pair_metrics(records)}})
    page = page_of(project)
    assert "<td>dpo_over_&lt;b&gt;</td>" in page
    cells = re.search(r"dpo_over_.*", page)[0].replace('<td class="number">', "").split("</td>")[1:]
    assert cells[:5] == ["2", "1", "1", "0", "1"]
    assert re.fullmatch(r"62\.5\s% \(.*\s% to .*\s%\)", cells[5])
    Checker(page)


def test_a_judge_that_failed_everywhere_still_gives_a_page(project: Path) -> None:
    write_responses(project, make_responses(), failing=30)
    Checker(page_of(project))


def test_a_missing_auroc_is_a_dash(project: Path) -> None:
    path = project / "metrics" / "finetune_spam.json"
    scores = read_json(path)
    del scores["test"]["auroc"]
    write_json(path, scores)
    assert re.search(
        r"test AUROC</td><td class=\"empty\"></td><td class=\"number result\"[^>]*>–</td>", page_of(project)
    )


def test_any_number_of_classes_has_its_means_and_its_confusion(project: Path) -> None:
    path, classes = project / "metrics" / "finetune_spam.json", [f"class {i}" for i in range(12)]
    messages = [{"id": str(i), "label": i % 12, "text": f"text {i}"} for i in range(36)]
    rows = prediction_rows(messages, np.eye(12)[[*range(11), 3] * 3], classes)
    for stage in ("finetune_spam", "baseline_spam"):
        write_table(project / "data" / "predictions" / f"{stage}.parquet", rows, PREDICTION_SCHEMA)
    scores = classification_scores(np.arange(36) % 12, np.eye(12)[[*range(11), 3] * 3], classes)
    write_json(path, read_json(path) | dict.fromkeys(SPLITS, scores))
    page = page_of(project)
    Checker(page)
    assert "test macro F1" in page and "test AUROC" not in page
    assert "3 of 36 test messages" in page
    assert "classes.class 11.f1" in page and "class 11_as_class 3" not in page
    (chart,) = re.findall(
        r'<svg class="chart" role="img" aria-label="finetune_spam: confusion matrix.*?</svg>', page, re.S
    )
    assert chart.count(">3<") == 12 and all(f">class {i}<" in chart for i in range(12))


def test_a_run_without_mistakes_says_so(project: Path) -> None:
    path = project / "data" / "predictions" / "finetune_spam.parquet"
    right = [row | {"predicted": row["label"]} for row in read_table(path)]
    write_table(path, right, PREDICTION_SCHEMA)
    assert "None of the 5 test messages was misclassified" in page_of(project)


@pytest.mark.parametrize(
    "name",
    [
        "metrics/judge.json",
        "metrics/load_gpt2/nano.json",
        "metrics/generate/dpo.json",
        "data/responses/generate/dpo.parquet",
        "metrics/plots/pretrain.csv",
        "data/samples/pretrain.json",
        "data/predictions/finetune_spam.parquet",
        "data/predictions/baseline_spam.parquet",
        "metrics/baseline_spam.json",
        "data/responses/judge.parquet",
        "data/models/pretrain/model.safetensors",
    ],
)
def test_a_missing_file_is_named(project: Path, name: str) -> None:
    (project / name).unlink()
    with pytest.raises(UserError, match=f"{re.escape(name)}: no such file"):
        page_of(project)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"step,train_loss\n0,\xc8\n", "not valid CSV ("),
        (b"step,train_loss\n0,high\n", "a cell is not a number"),
        (b"step,train_loss\n0\n", "a cell is not a number"),
        (b"step,train_loss\n0,1,2\n", "a cell is not a number"),
    ],
)
def test_a_damaged_curve_is_named(project: Path, content: bytes, words: str) -> None:
    (project / "metrics" / "plots" / "pretrain.csv").write_bytes(content)
    with pytest.raises(UserError, match=rf"pretrain\.csv: {re.escape(words)}"):
        page_of(project)


def test_best_middling_and_worst_responses_are_shown_with_those_of_all_variants(project: Path) -> None:
    shown = examples(answered_tasks(collect(Inputs(**options(project))).responses))
    assert list(shown) == ["Best", "Around the median", "Worst"]
    best, worst = shown["Best"][0], shown["Worst"][-1]
    assert best["answers"]["instruct"]["score"] == 100 and worst["answers"]["instruct"]["score"] < 50
    assert {name: (row["id"], row["model"]) for name, row in best["answers"].items()} == {
        name: (best["id"], name) for name in ("base", "instruct", "dpo", "grpo")
    }


def real_graph(**changes: Any) -> dict[str, tuple[str, ...]]:
    params = load_yaml(PROFILE)
    for key, value in changes.items():
        params[key] = params[key] | value if isinstance(value, dict) else value
    return {stage.name: stage.sources for stage in stage_graph(load_yaml(REPOSITORY / "dvc.yaml"), params)}


def test_the_real_pipeline_has_the_edges_that_its_parameters_make() -> None:
    graph = real_graph()
    assert graph["preflight"] == ()
    assert graph["download"] == ("preflight",)
    assert graph["tokenize"] == ("download",)
    assert graph["pretrain"] == ("tokenize",)
    assert graph["load_gpt2@nano"] == ("download", "tokenize")
    assert real_graph(pretrain_ablations={"a": {}})["ablate_pretrain@a"] == ("tokenize",)
    assert graph["finetune_spam"] == ("tokenize", "load_gpt2@nano")
    assert graph["generate@base"] == ("tokenize", "load_gpt2@nano")
    assert graph["generate@dpo"] == ("tokenize", "finetune_preference@dpo")
    assert graph["generate@grpo"] == ("tokenize", "reinforce@grpo")
    assert graph["judge"] == ("generate@base", "generate@instruct", "generate@dpo", "generate@grpo")
    assert "pretrain" in graph["report"] and "report" not in graph["report"]


def test_another_base_model_rewires_the_real_pipeline() -> None:
    assert real_graph(finetune_spam={"base": "pretrain"})["finetune_spam"] == ("tokenize", "pretrain")


def test_no_gpt2_sizes_leave_no_loading_stage_in_the_real_pipeline() -> None:
    base = {"base": "pretrain"}
    graph = real_graph(gpt2_sizes=[], finetune_spam=base, finetune_instruct=base)
    assert not any("load_gpt2" in name for name in graph)
    assert graph["finetune_instruct"] == ("tokenize", "pretrain")


def test_the_graph_is_drawn_for_every_list_of_sizes() -> None:
    params = load_yaml(PROFILE)
    sizes = ["nano", "124M", "355M", "774M", "1558M"]
    for n in range(len(sizes) + 1):
        stages = stage_graph(load_yaml(REPOSITORY / "dvc.yaml"), params | {"gpt2_sizes": sizes[:n]})
        picture = graph_svg(stages, {})
        assert picture.count("<rect") == len(stages)
        assert picture.count('class="arrow"') == len(drawn_edges(stages))


def test_an_edge_joins_stages_whose_paths_are_the_same_or_hold_each_other() -> None:
    pipeline = {
        "stages": {
            "a": {"outs": ["x/folder", {"y.csv": {"cache": False}}]},
            "b": {"deps": ["x/folder/file"], "metrics": ["z/deep/m.json"]},
            "c": {"deps": ["y.csv", "z"], "desc": "<last>"},
            "d": {"deps": ["x/folder2", "${name}"]},
        }
    }
    stages = stage_graph(pipeline, {"name": "y.csv"})
    assert [stage.sources for stage in stages] == [(), ("a",), ("a", "b"), ("a",)]
    assert drawn_edges(stages) == [("a", "b"), ("b", "c"), ("a", "d")]
    assert "<title>&lt;last&gt;</title>" in graph_svg(stages, {})


def test_an_unknown_parameter_in_the_pipeline_is_named() -> None:
    with pytest.raises(UserError, match=r"\$\{model.name\}, which params.yaml does not have"):
        stage_graph({"stages": {"a": {"deps": ["${model.name}"]}}}, {"model": {}})


def test_numbers_have_four_digits_and_shares_one_decimal() -> None:
    values = [1_000_495, 2.53714, 123456.7, 0.0001, 5e-05, None, True, 100.0, "text"]
    assert [format_number(v) for v in values] == [
        "1,000,495", "2.537", "123,457", "0.0001", "5e-05", "–", "yes", "100", "text",
    ]  # fmt: skip
    assert format_percent(0.98765) == "98.8\N{NO-BREAK SPACE}%"
    assert [format_signed(v, 3) for v in (-0.01234, 0.5, 0.0)] == ["−0.012", "+0.500", "+0.000"]


def test_long_texts_end_in_an_ellipsis_and_long_lists_keep_both_ends() -> None:
    assert shortened("a" * 400, 400) == "a" * 400
    assert shortened("a" * 401, 400) == "a" * 399 + "…"
    assert thinned(range(100), 4) == [0, 33, 66, 99]
    assert thinned([1, 2], 4) == [1, 2]


def test_metrics_become_tables_with_splits_as_columns_in_their_order() -> None:
    tables = metric_tables({"test": {"loss": 1.5}, "train": {"loss": 2, "c": {"a": 1}}, "width": 7})
    assert tables[0] == ("", ("train", "test"), [("loss", ("2", "1.5")), ("c.a", ("1", "–"))])
    assert metric_tables({"corpus": {"val": {"loss": 1}}})[0] == ("corpus", ("val",), [("loss", ("1",))])
    assert tables[1] == ("", ("value",), [("width", ("7",))])
    gain = metric_tables({"gain_of_finetune_spam": {"accuracy": -0.0067}, "test": {"accuracy": 1.0}})[0]
    assert gain.rows == [("accuracy", ("100.0\N{NO-BREAK SPACE}%", "\N{MINUS SIGN}0.7 points"))]
