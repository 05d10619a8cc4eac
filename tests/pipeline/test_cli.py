"""The command line as a user calls it, on the models of a tiny pipeline."""

import csv
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from scratchlm.data.byte_pairs import save_byte_pairs, train_byte_pairs
from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.formats.classifier import save_classifier
from scratchlm.formats.huggingface import load_huggingface
from scratchlm.formats.native import load_gpt, save_gpt
from scratchlm.model.classifier import GPTClassifier
from scratchlm.model.config import GPTConfig
from scratchlm.model.gpt import build_model
from scratchlm.run.files import read_json
from tests.clones import REPOSITORY
from tests.commands import scratchlm

TOKENIZER = "data/tokens/finetuning_tokenizer"
CONFIG = GPTConfig(
    vocab_size=270, context_length=128, n_layers=1, n_heads=2, emb_dim=16, dropout=0.0, qkv_bias=True,
    tied_head=True, initialisation="gpt2", attention="sdpa",
)  # fmt: skip

LLAMA = {
    "position": "rope", "norm": "rms", "feed_forward": "swiglu", "n_kv_heads": 1, "hidden_dim": 24, "rope_base": 5e5,
    "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context_length": 8192},
    "qkv_bias": False, "bias": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder laid out as the pipeline leaves it."""
    home = tmp_path_factory.mktemp("home")
    save_byte_pairs(home / TOKENIZER, *train_byte_pairs(["the red bird saw the red house"] * 9, 270))
    save_gpt(home / "data/models/finetune_instruct", build_model(CONFIG, 1))
    (home / "dvc.yaml").touch()
    (home / "notes").mkdir()
    (home / "params.yaml").write_text((REPOSITORY / "params.yaml").read_text())
    save_classifier(
        home / "data/models/finetune_spam", GPTClassifier(build_model(CONFIG, 2), 3, "last_real"),
        classes=("ham", "spam", "news & views"), padded_tokens=32,
    )  # fmt: skip
    return home


def test_classify_names_the_class_and_every_probability(home):
    done = scratchlm(home, "classify", "You won a prize")
    assert done.returncode == 0
    label, found = done.stdout.removesuffix(")\n").split(" (")
    names, values = zip(*(each.rsplit(" ", 1) for each in found.split(", ")), strict=True)
    assert label == names[0] and set(names) == {"ham", "spam", "news & views"}
    assert list(values) == sorted(values, reverse=True) and sum(map(float, values)) == pytest.approx(1, abs=0.002)


def test_classify_takes_many_texts_in_and_gives_many_formats_out(home, tmp_path):
    one = {each: scratchlm(home, "classify", each).stdout.strip() for each in ("You won", "See you, ok")}
    done = scratchlm(home, "classify", given="You won\n\nSee you, ok\n")
    assert done.stdout.splitlines() == [f"{found}  {text}" for text, found in one.items()]

    (tmp_path / "texts.csv").write_text('n,message\n1,You won\n2,"See you, ok"\n')
    asked = ("classify", "--file", str(tmp_path / "texts.csv"), "--text-column", "message", "--format")
    found = [json.loads(line) for line in scratchlm(home, *asked, "jsonl").stdout.splitlines()]
    assert [row["text"] for row in found] == [*one]
    for row in found:
        assert one[row["text"]].startswith(row["class"])
        assert max(row["probabilities"], key=row["probabilities"].get) == row["class"]
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    head, *rows = csv.reader(scratchlm(home, *asked, "csv").stdout.splitlines())
    assert head == ["text", "class", "ham", "spam", "news & views"]
    assert [row[:2] for row in rows] == [[row["text"], row["class"]] for row in found]


def test_classify_says_what_it_cut_and_what_it_cannot_read(home, tmp_path):
    done = scratchlm(home, "classify", "the red bird " * 40)
    assert done.stderr == "1 of 1 texts were cut: the classifier reads 32 tokens\n"
    (tmp_path / "x.csv").write_text("message\nHello\n")
    done = scratchlm(home, "classify", "--file", str(tmp_path / "x.csv"))
    assert (
        done.returncode == 1
        and "x.csv: no column 'text' among message; name the column with --text-column" in done.stderr
    )
    done = scratchlm(home, "classify", "--file", str(tmp_path / "none.txt"))
    assert done.returncode == 1 and "none.txt: no such file" in done.stderr
    done = scratchlm(home, "classify", "Hello", "--file", str(tmp_path / "x.csv"))
    assert done.returncode == 1 and "give a message or --file, not both" in done.stderr


def test_tokens_are_shown_with_their_pieces(home):
    text = "the red\nbird é"
    rows = json.loads(scratchlm(home, "tokens", text, "--format", "json").stdout)
    assert load_tokenizer(home / TOKENIZER).encode(text) == [row["id"] for row in rows]
    assert "".join(row["piece"] for row in rows).startswith("the red\nbird ")
    *_, last = (table := scratchlm(home, "tokens", text).stdout).splitlines()
    assert '" red"' in table and '"\\n"' in table
    assert last == f"{len(rows)} tokens, 14 characters, 15 bytes"


def test_complete_continues_a_text_and_explains_every_token(home):
    chosen = ("--model", "data/models/finetune_instruct", "--tokenizer", TOKENIZER, "--max-new-tokens", "6")
    done = scratchlm(home, "complete", "the red", *chosen, "--explain")
    assert done.returncode == 0 and done.stdout.startswith("the red")
    rows = [line for line in done.stdout.splitlines() if re.match('".*"  ', line)]
    assert len(rows) == 6
    for row in rows:  # greedy: the most likely token is the one that was chosen
        token, p, likely = re.split(" {2,}", row, maxsplit=2)
        assert likely.startswith(f"{token} {p}, ")
    whole = json.loads(scratchlm(home, "complete", "the red", *chosen, "--explain", "--format", "json").stdout)
    assert done.stdout.startswith(f"{whole['text']}{whole['completion']}\n")
    assert len(whole["tokens"]) == 6 and all(
        row.items() >= row["likely"][0].items() and len(row["likely"]) == 4 for row in whole["tokens"]
    )
    done = scratchlm(home, "complete", "the red", *chosen, "--format", "json")
    assert done.returncode == 1 and not done.stdout and "add --explain" in done.stderr
    drawn = ("complete", "the red", *chosen, "--temperature", "1.5")
    first, again = (scratchlm(home, *drawn) for _ in range(2))
    assert first.returncode == 0 and first.stdout == again.stdout
    assert first.stdout != scratchlm(home, "complete", "the red", *chosen).stdout
    done = scratchlm(home, "complete", "the red " * 200, *chosen, "--explain")
    assert done.returncode == 1 and "--explain shows what fits the model's context of 128 tokens" in done.stderr
    done = scratchlm(home, "complete", "", *chosen)
    assert done.returncode == 1 and "the text has no tokens" in done.stderr


def test_attention_draws_a_page_and_overwrites_none(home, tmp_path):
    chosen = ("--model", "data/models/finetune_instruct", "--tokenizer", TOKENIZER, "--output")
    done = scratchlm(home, "attention", "the red <b>", *chosen, page := str(tmp_path / "page.html"))
    assert (done.returncode, done.stdout) == (0, f"wrote {page}\n"), done.stderr
    assert "the red &lt;b&gt;" in Path(page).read_text(encoding="utf-8")
    done = scratchlm(home, "attention", "the red", *chosen, page)
    assert done.returncode == 1 and "already exists" in done.stderr
    for text, n_tokens in (("", 0), (("the red " * 64).strip(), 128)):
        done = scratchlm(home, "attention", text, *chosen, str(tmp_path / "new.html"))
        assert done.stderr.startswith(
            f"scratchlm: the text has {n_tokens} tokens; give 1 to 64, which fit the page and the context"
        )
    assert not (tmp_path / "new.html").exists()


def test_the_version_is_that_of_the_package(home):
    assert scratchlm(home, "--version").stdout == f"scratchlm {version('scratchlm')}\n"


def test_chat_answers_each_line_and_ends_with_the_input(home):
    done = scratchlm(home, "chat", "--max-new-tokens", "5", given="Say red.\nSay bird.\n")
    assert done.returncode == 0
    assert done.stdout.count("\n") >= 2


def test_chat_asks_in_the_style_of_params_yaml_unless_told_otherwise(home, tmp_path):
    (tmp_path / "data").symlink_to(home / "data")
    (tmp_path / "params.yaml").write_text("tokenize: {instructions: {prompt_style: phi3}}\n")
    options = ("chat", "--max-new-tokens", "40", "--temperature", "2")
    words = {"given": "Say red.\n"}
    answers = [
        scratchlm(tmp_path, *options, **words).stdout,
        scratchlm(home, *options, "--prompt-style", "phi3", **words).stdout,
        scratchlm(home, *options, "--prompt-style", "alpaca", **words).stdout,
    ]
    assert answers[0] == answers[1] != answers[2]


def test_results_gives_the_headline_figures_of_the_metrics_files():
    done = scratchlm(REPOSITORY, "results")
    assert done.returncode == 0, done.stderr
    rows = {tuple(line.split("  ")[0].split()): line for line in done.stdout.splitlines()}
    judged = read_json(REPOSITORY / "metrics/judge.json")
    for name, measure in {"instruct": "mean score of 0 to 100", "dpo": "mean score of dpo"}.items():
        assert re.search(rf"judge +{measure} .* {judged[name]['mean_score']:.4g} ", done.stdout)
    assert "gpt2-nano" in done.stdout
    assert max(map(len, rows.values())) <= 80


def test_results_without_the_scores_of_a_variant_are_one_sentence(tmp_path):
    (tmp_path / "metrics").symlink_to(REPOSITORY / "metrics")
    text = (REPOSITORY / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("\nvariants:", "\nvariants:\n  new: pretrain"))
    done = scratchlm(tmp_path, "results")
    assert done.returncode == 1
    assert re.fullmatch(
        r"scratchlm: the judge has no scores of new.*, which variants names; run `dvc repro`\n", done.stderr
    )


@pytest.mark.parametrize("text", ["{}", "[]", "tokenize: 3\n", "tokenize: {instructions: {prompt_style: x}}\n"])
def test_parameters_of_another_shape_are_one_sentence(home, tmp_path, text):
    (tmp_path / "data").symlink_to(home / "data")
    (tmp_path / "params.yaml").write_text(text)
    for command in ("chat", "results"):
        done = scratchlm(tmp_path, command)
        assert done.stderr.startswith("scratchlm: params.yaml: ")
        assert all("params.yaml: " in line for line in done.stderr.splitlines())


def test_results_before_anything_was_built_says_what_is_missing(tmp_path):
    (tmp_path / "params.yaml").write_text("gpt2_sizes: []\npretrained: []\nvariants: {instruct: finetune_instruct}\n")
    done = scratchlm(tmp_path, "results")
    assert done.returncode == 1
    assert done.stderr.startswith("scratchlm: metrics/pretrain.json: no such file; `dvc repro` makes")
    assert done.stderr.count("\n") == 1


def test_export_writes_a_folder_that_reads_back_as_the_same_model(home, tmp_path):
    done = scratchlm(home, "export", str(tmp_path / "out"), "--format", "huggingface")
    assert done.returncode == 0, done.stderr
    ours, theirs = load_gpt(home / "data/models/finetune_instruct"), load_huggingface(tmp_path / "out")
    assert all((a == b).all() for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    done = scratchlm(home, "import", str(tmp_path / "out"), str(tmp_path / "back"))
    assert done.returncode == 0, done.stderr
    weights = "model.safetensors"
    original = home / "data/models/finetune_instruct" / weights
    assert (tmp_path / "back/model" / weights).read_bytes() == original.read_bytes()
    for name in ("encoder.json", "vocab.bpe"):
        assert (tmp_path / "back/tokenizer" / name).read_bytes() == (home / TOKENIZER / name).read_bytes()


@pytest.mark.parametrize("changes", [{}, LLAMA], ids=["gpt2", "llama"])
def test_a_gguf_file_that_was_exported_imports_as_the_same_model(home, tmp_path, changes):
    model, weights = tmp_path / "model", "model.safetensors"
    save_gpt(model, build_model(GPTConfig.model_validate(CONFIG.model_dump() | changes), 3))
    exported, back = tmp_path / "out.gguf", tmp_path / "back"
    options = ("--model", str(model), "--prompt-style", "phi3")
    done = scratchlm(home, "export", str(exported), "--format", "gguf", *options)
    assert done.returncode == 0, done.stderr
    done = scratchlm(home, "import", str(exported), str(back))
    assert (done.returncode, done.stdout) == (0, f"wrote {back / 'model'} and {back / 'tokenizer'}\n"), done.stderr
    assert (back / "model" / weights).read_bytes() == (model / weights).read_bytes()
    assert load_gpt(back / "model").config == load_gpt(model).config
    imported = ("--model", str(back / "model"), "--tokenizer", str(back / "tokenizer"))
    asked = {"given": "Say red.\n"}
    answers = [
        scratchlm(home, "chat", "--max-new-tokens", "5", *chosen, **asked).stdout
        for chosen in (options, (*imported, "--prompt-style", "phi3"))
    ]
    assert answers[0] == answers[1] != ""
    done = scratchlm(home, "export", str(tmp_path / "again.gguf"), "--format", "gguf", *imported)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again.gguf").read_bytes() == exported.read_bytes()  # the chat template, too


@pytest.mark.parametrize("words", [("chat",), ("export", "out", "--format", "gguf")])
def test_a_style_whose_markers_the_tokenizer_lacks_is_refused_before_any_answer(home, words):
    done = scratchlm(home, *words, "--prompt-style", "chatml", given="Say red.\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert "prompt style chatml needs the special tokens <|im_start|> and <|im_end|>" in done.stderr
    assert not (home / "out").exists()


def test_a_gguf_file_comes_with_its_modelfile_and_both_can_be_read_by_others(home, tmp_path):
    done = scratchlm(home, "export", str(tmp_path / "out.gguf"), "--format", "gguf", "--storage", "q8_0")
    assert done.stdout == f"wrote {tmp_path / 'out.gguf'} and {tmp_path / 'out.Modelfile'}\n", done.stderr
    text = (tmp_path / "out.Modelfile").read_text()
    assert text.startswith('FROM ./out.gguf\nTEMPLATE """{{ range .Messages }}') and "num_ctx 128\n" in text
    assert {oct(path.stat().st_mode)[-3:] for path in tmp_path.iterdir()} == {"644"}
    done = scratchlm(home, "export", str(tmp_path / "out"), "--format", "huggingface", "--storage", "q8_0")
    assert done.stderr == "scratchlm: --storage q8_0 is for --format gguf; a folder for transformers holds float32\n"


def test_a_classifier_is_exported_for_transformers_alone(home, tmp_path):
    words = ("--model", "data/models/finetune_spam", "--format")
    done = scratchlm(home, "export", str(tmp_path / "out"), *words, "huggingface")
    assert done.returncode == 0, done.stderr
    assert oct((tmp_path / "out").stat().st_mode)[-3:] == "755"
    assert {oct(path.stat().st_mode)[-3:] for path in (tmp_path / "out").iterdir()} == {"644"}
    assert read_json(tmp_path / "out/config.json")["id2label"]["2"] == "news & views"
    assert "`dvc.lock` does not record this model" in (tmp_path / "out/README.md").read_text()
    no_form = "holds a classifier, which gguf has no form of; export it with --format huggingface"
    no_adapter = "has no adapter.safetensors: it was not trained with lora; export it with another --format"
    for options, sentence in (
        (("gguf",), f"data/models/finetune_spam {no_form}"),
        (("peft",), f"data/models/finetune_spam {no_adapter}"),
        (
            ("huggingface", "--prompt-style", "phi3"),
            "--prompt-style is for the chat template of a language model or reward model; leave it out",
        ),
    ):
        done = scratchlm(home, "export", str(tmp_path / "other"), *words, *options)
        assert done.stderr == f"scratchlm: {sentence}\n"


def test_the_card_of_a_built_model_has_its_results_and_hashes(built, tmp_path):
    for name in ("finetune_instruct", "finetune_spam"):
        done = scratchlm(
            built, "export", str(tmp_path / name), "--format", "huggingface", "--model", f"data/models/{name}"
        )
        assert done.returncode == 0, done.stderr
        card = (tmp_path / name / "README.md").read_text()
        stages = yaml.safe_load((built / "dvc.lock").read_text())["stages"]
        for stage in (name, "pretrain"):
            made = {out["path"]: out["md5"] for out in stages[stage]["outs"]}
            assert f"| `{stage}` | `data/models/{stage}` | `{made[f'data/models/{stage}']}` |" in card
        revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=built, capture_output=True, text=True).stdout
        assert f"Git revision `{revision.strip()}`. The" in card
    scores = read_json(built / "metrics/finetune_spam.json")["test"]
    ends = f"{scores['accuracy_low']:.4g} to {scores['accuracy_high']:.4g}"
    assert f"| finetune_spam.test.accuracy | {scores['accuracy']:.4g} | {ends} |" in card


def test_export_overwrites_nothing(home, tmp_path):
    (tmp_path / "out.gguf").write_text("mine")
    done = scratchlm(home, "export", str(tmp_path / "out.gguf"), "--format", "gguf")
    assert done.returncode == 1
    assert "already exists" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out.gguf").read_text() == "mine"
    (tmp_path / "new.Modelfile").write_text("mine")
    done = scratchlm(home, "export", str(tmp_path / "new.gguf"), "--format", "gguf")
    assert done.stderr.startswith(f"scratchlm: {tmp_path / 'new.Modelfile'} already exists; name a new one")
    assert (tmp_path / "new.Modelfile").read_text() == "mine" and not (tmp_path / "new.gguf").exists()


def test_a_link_that_leads_nowhere_is_not_replaced(home, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "none")
    done = scratchlm(home, "export", str(tmp_path / "link"), "--format", "gguf")
    assert done.stderr == f"scratchlm: {tmp_path / 'link'} already exists; name a new one, nothing is overwritten\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_output_that_cannot_be_written_is_one_sentence(home):
    shell = f"{sys.executable} -m scratchlm.cli.main {{}}"
    done = subprocess.run(
        [shell.format("results > /dev/full")], shell=True, cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.stderr.startswith("scratchlm: standard output: no space left on device; free some space")
    assert len(done.stderr.splitlines()) == 1
    done = subprocess.run([shell.format("chat <&- >&-")], shell=True, cwd=home, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run(
        [shell.format("results")],
        shell=True,
        cwd=REPOSITORY,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_in_a_subfolder_the_projects_folder_is_named():
    done = scratchlm(REPOSITORY / "docs", "results")
    assert (
        done.stderr == f"scratchlm: params.yaml: no such file in {REPOSITORY / 'docs'}; run scratchlm in {REPOSITORY}\n"
    )


def test_from_a_subfolder_defaults_are_the_projects_and_typed_paths_are_relative_to_it(home, tmp_path):
    model = ("--model", "{}data/models/finetune_instruct", "--tokenizer", "{}" + TOKENIZER, "--max-new-tokens", "3")
    for words in (("classify", "You won"), ("tokens", "the red"), ("complete", "the red", *model), ("chat", *model)):
        top, below = ([word.format(prefix) for word in words] for prefix in ("", "../"))
        done = scratchlm(home / "notes", *below, given="Say red.\n")
        assert done.stdout == scratchlm(home, *top, given="Say red.\n").stdout != "", done.stderr
    done = scratchlm(home / "notes", "export", "out.gguf", "--format", "gguf")
    assert (done.returncode, done.stdout) == (0, "wrote out.gguf and out.Modelfile\n"), done.stderr
    assert (home / "notes/out.gguf").exists()
    done = scratchlm(home / "notes", "chat", "--model", "data/models/finetune_instruct")
    assert f"no such file in {home / 'notes'}; run scratchlm in {home}" in done.stderr


def test_a_missing_model_is_one_sentence(home):
    done = scratchlm(home, "chat", "--model", "data/models/none")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "dvc repro" in done.stderr


def test_a_language_model_cannot_classify(home):
    done = scratchlm(home, "classify", "hello", "--model", "data/models/finetune_instruct")
    assert done.returncode == 1
    assert "does not hold a classifier" in done.stderr


def test_a_tokenizer_of_another_model_is_refused(home, tmp_path):
    save_byte_pairs(tmp_path / "other", *train_byte_pairs(["a green frog and a blue bird"] * 9, 265))
    for command in (["chat"], ["classify", "hello"], ["export", str(tmp_path / "out"), "--format", "gguf"]):
        done = scratchlm(home, *command, "--tokenizer", str(tmp_path / "other"))
        assert done.returncode == 1
        assert "vocabulary mismatch" in done.stderr and "has 270 tokens" in done.stderr and "has 265" in done.stderr


@pytest.mark.parametrize("name", ["repair", "mend"])
def test_repair_has_nothing_to_say_where_nothing_is_broken(tmp_path, name):
    (tmp_path / "dvc.yaml").touch()
    done = scratchlm(tmp_path, name)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_help_lists_every_command_but_the_old_name():
    listed = scratchlm(REPOSITORY, "--help").stdout
    names = (
        "chat",
        "complete",
        "classify",
        "tokens",
        "attention",
        "export",
        "import",
        "repro",
        "results",
        "status",
        "repair",
        "verify",
        "compare",
        "seeds",
        "rate",
        "build",
    )
    assert [name for name in names if f" {name} " not in listed] == []
    assert "mend" not in listed
