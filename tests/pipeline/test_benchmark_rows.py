"""Every row of the benchmarks runs and measures every contender; how fast is not for a test to say."""

import json
import os
import re
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
import torch
from llms_from_scratch.ch07 import custom_collate_fn

from benchmarks.baselines import LlamaServer, book_model, huggingface_model, our_model
from benchmarks.harness import REPOSITORY, RESULTS, Contender, Row, matrix_products, measure, results, table
from benchmarks.rows import instruct, spam
from benchmarks.run import all_rows, main
from benchmarks.setting import Setting
from benchmarks.sources import instruction_splits, messages_of, tokenizer_of
from benchmarks.summary import markdown
from scratchlm.data.tokenizer import IGNORE_INDEX
from scratchlm.model.config import GPT2_CONTEXT_LENGTH
from scratchlm.model.generate import Stopping, generate
from scratchlm.run.files import read_json, write_json
from scratchlm.tasks.instruct import Instructions, ResponseEvaluation, instruct_task
from scratchlm.tasks.spam import padded_texts, padded_width
from scratchlm.training.order import batch_indices

ROWS = all_rows("TINY")
NAME = "exact_decode_1"
# They take seconds, and differ from others by their precision or their head
SLOW = ("decode_16_bfloat16", "instruct_float32", "instruct_bfloat16", "spam_bfloat16")
MARKS = dict.fromkeys(SLOW, pytest.mark.slow)


def test_every_row_has_a_small_form_of_the_same_contenders_and_bars() -> None:
    shapes = [
        {name: (row.unit, list(row.contenders), row.targets) for name, row in all_rows(kind).items()}
        for kind in ("ROWS", "TINY")
    ]
    assert shapes[0] == shapes[1]
    assert all(set(targets) < set(contenders) for _, contenders, targets in shapes[0].values())


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, ())) for name in ROWS])
@pytest.mark.usefixtures("deterministic_as_before")
def test_every_contender_of_a_row_does_the_same_work_each_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp's file is written by a thread, not by a process, whose start takes most of the time."""
    monkeypatch.setattr("multiprocessing.get_context", lambda method: SimpleNamespace(Process=Thread))
    done = {}
    for baseline, contender in ROWS[name].contenders.items():
        run = contender.setup(**contender.options)
        assert (units := run()) > 0
        assert run() == units
        done[baseline] = units
    if name.startswith(("pretrain", "decode")):  # elsewhere a slow baseline may do a part of the work
        assert len(set(done.values())) == 1, done


def test_the_command_measures_a_row_in_processes_of_their_own_and_writes_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.run.RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.run.all_rows", lambda kind: ROWS)
    monkeypatch.setattr("sys.argv", ["run.py", "--row", NAME, "--repeats", "1", "--threads", "1"])
    main()
    (path,) = tmp_path.iterdir()
    found = read_json(path)
    assert path.name == f"{NAME}.json"
    assert list(found["contenders"]) == sorted(ROWS[NAME].contenders)
    for measured in found["contenders"].values():
        assert measured["rate"]["lowest"] == measured["rate"]["median"] == measured["rate"]["highest"] > 0
        assert measured["peak_memory_bytes"] > 0
    assert {baseline: ratio["target"] for baseline, ratio in found["ratios"].items()} == ROWS[NAME].targets
    assert set(found["machine"]["peak_gflop_per_second"]) == {"float32", "bfloat16"}
    assert found["machine"]["versions"].keys() >= {"torch", "transformers", "llms-from-scratch", "xllamacpp"}
    assert found["command"] == f"python -m benchmarks.run --row {NAME} --repeats 1 --threads 1"
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", found["commit"])
    printed = capsys.readouterr().out
    assert all(re.search(rf"^{contender} .*MiB", printed, flags=re.MULTILINE) for contender in found["contenders"])
    assert ROWS[NAME].notes in printed


def test_rates_and_ratios_are_taken_round_by_round(tmp_path: Path) -> None:
    """Units over seconds each round; a slow moment that meets both in one round leaves their ratio alone."""
    row = Row("tokens", {"ours": Contender(int, {}), "baseline": Contender(int, {})}, {"baseline": 2.0}, "notes")
    units = {"ours": [10.0, 10.0, 10.0], "baseline": [20.0, 20.0, 20.0]}
    seconds = {"ours": [1.0, 10.0, 2.0], "baseline": [4.0, 40.0, 10.0]}
    found = results(row, units, seconds, {"ours": 3 * 2**20, "baseline": 12 * 2**20})
    assert found["contenders"]["ours"]["rate"] == {"median": 5.0, "lowest": 1.0, "highest": 10.0}
    assert found["contenders"]["baseline"]["seconds"] == {"median": 10.0, "lowest": 4.0, "highest": 40.0}
    ratio = {"median": 2.0, "lowest": 2.0, "highest": 2.5, "target": 2.0, "met": True, "peak_memory": 0.25}
    assert found["ratios"] == {"baseline": ratio}
    write_json(tmp_path / "row.json", found)
    assert read_json(tmp_path / "row.json") == json.loads(json.dumps(found))
    header, _, ours, baseline = table("row", found).splitlines()
    assert "tokens per second" in header and "peak memory" in header and "ours is … times as fast" in header
    assert "5 (1 to 10)" in ours and "3 MiB" in ours and "met" not in ours
    assert (
        "2 (0.5 to 5)" in baseline
        and "12 MiB" in baseline
        and "2 (2 to 2.5)" in baseline
        and baseline.endswith("2, met")
    )


@pytest.mark.parametrize(
    ("broken", "why"),
    [(Contender(json.loads, {"s": "{"}), "JSONDecodeError"), (Contender(os._exit, {"status": 3}), "BrokenProcessPool")],
)
def test_a_contender_that_fails_is_named_with_its_error_in_one_sentence(broken: Contender, why: str) -> None:
    row = Row("GFLOP", {"ours": Contender(matrix_products, {"precision": "float32"}), "baseline": broken}, {}, "")
    with pytest.raises(RuntimeError, match=rf"^products: contender baseline failed with {why} \([^\n]*; [^\n]*$"):
        measure("products", row, repeats=1, threads=1)


def test_all_models_of_a_size_have_the_same_weights() -> None:
    """The same logits, and from llama.cpp, which gives none, the same greedy tokens; in half precision nearly so."""
    ours, book, huggingface = (make("nano").eval() for make in (our_model, book_model, huggingface_model))
    prompts = torch.randint(50256, (4, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = ours(prompts)
        assert expected.std() > 0.1
        torch.testing.assert_close(book(prompts), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(huggingface(prompts).logits, expected, atol=1e-5, rtol=0)
        half = huggingface_model("nano", "bfloat16").eval()(prompts).logits
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.05, rtol=0)
    found = generate(ours, prompts.tolist(), Stopping(12, None))
    server = LlamaServer("nano", half=False, slots=4, slot_tokens=256)
    assert server.continued(prompts.tolist(), 12) == [generation.token_ids for generation in found]


def test_the_books_head_is_a_copy_and_transformers_head_is_tied_as_ours() -> None:
    ours, book, huggingface = (make("nano") for make in (our_model, book_model, huggingface_model))
    counts = [sum(p.numel() for p in model.parameters()) for model in (ours, huggingface, book)]
    assert counts[0] == counts[1] == counts[2] - ours.token_embedding.weight.numel()


def test_the_book_and_transformers_get_our_batches_of_instructions() -> None:
    """Transformers' labels are the inputs themselves: it shifts them."""
    source, text = ("sample-instructions", "gpt2-nano"), tokenizer_of("gpt2-nano")
    p, rows = instruct.params_of(Setting()), instruction_splits(*source)["train"]
    size, end = p.finetune_instruct.batch_size, text.end_token_id
    instructions = Instructions({"train": rows}, text, GPT2_CONTEXT_LENGTH)
    task = instruct_task(instructions, p.finetune_instruct, ResponseEvaluation(instructions, p.evaluation))
    theirs = instruct.examples(*source, steps=3)["train"]
    for step in range(3):
        inputs, targets = task.batch(batch_indices(step, len(rows), size, p.seed)).tensors
        batch = theirs[step * size : (step + 1) * size]
        for found, expected in zip(custom_collate_fn(batch, end), (inputs, targets), strict=True):
            assert torch.equal(found, expected)
        padded = instruct.padded(batch, end)
        assert torch.equal(padded["input_ids"][:, :-1], inputs)
        assert torch.equal(padded["labels"][:, 1:], targets)
        assert torch.equal(padded["attention_mask"][:, 1:] == 0, targets == IGNORE_INDEX)


def test_the_book_gets_our_messages_padded_as_ours() -> None:
    source, end = ("sample-messages", "gpt2-nano"), tokenizer_of("gpt2-nano").end_token_id
    splits, datasets = messages_of(*source).splits, spam.book_datasets(*source)
    width = padded_width("longest", [row["token_ids"] for row in splits["train"]], GPT2_CONTEXT_LENGTH)
    for split, rows in splits.items():
        texts = padded_texts([row["token_ids"] for row in rows], end, width)
        assert torch.equal(texts.token_ids, torch.tensor(datasets[split].encoded_texts))
        assert datasets[split].data["Label"].tolist() == [row["label"] for row in rows]


def test_the_page_of_benchmarks_shows_what_the_result_files_say() -> None:
    assert markdown(RESULTS) in (REPOSITORY / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert "| `pretrain_float32` " in markdown(RESULTS)
