from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llms_from_scratch.ch07 import custom_collate_fn, format_input

from scratchlm.data.byte_pairs import BytePairTokenizer
from scratchlm.data.instructions import (
    InstructionsParams,
    collate,
    read_instructions,
    split_instructions,
    write_instructions,
)
from scratchlm.data.prompts import format_prompt
from scratchlm.run.errors import UserError
from scratchlm.run.files import read_table, sha256_of, write_json
from scratchlm.run.params import check_params
from tests.conftest import Inputs

BOOK = InstructionsParams(prompt_style="alpaca", deduplicate="none", train_fraction=0.85, test_fraction=0.1)
END = 50256


def rows(*lengths: tuple[int, int]) -> list[dict[str, Any]]:
    """Rows of (prompt, response) lengths with the tokens 1, 2, 3, …"""
    return [
        {"prompt_token_ids": [*range(1, p + 1)], "response_token_ids": [*range(p + 1, p + r + 1)]} for p, r in lengths
    ]


def test_the_tasks_are_written_with_prompts_and_tokens(inputs: Inputs, gpt2: BytePairTokenizer, tmp_path: Path) -> None:
    counts = write_instructions(inputs.instructions, gpt2, tmp_path / "a", BOOK)
    for split in ("train", "val", "test"):
        table = read_table(tmp_path / "a" / f"{split}.parquet")
        for row in table:
            # the book tokenizes prompt and response in one
            together = gpt2.encode(format_input(row) + f"\n\n### Response:\n{row['output']}")
            assert row["prompt_token_ids"] + row["response_token_ids"] == together
        assert counts[split] == {
            "records": len(table),
            "tokens": sum(len(row["prompt_token_ids"]) + len(row["response_token_ids"]) for row in table),
        }
    write_instructions(inputs.instructions, gpt2, tmp_path / "b", BOOK)
    for split in ("train", "val", "test"):
        assert sha256_of(tmp_path / "a" / f"{split}.parquet") == sha256_of(tmp_path / "b" / f"{split}.parquet")


def test_a_duplicate_asks_the_same_whatever_the_answer(gpt2: BytePairTokenizer, tmp_path: Path) -> None:
    same = {"instruction": "Say hi.", "input": "", "output": "hi"}
    entries = [same, same, same | {"instruction": "Speak."}, same | {"input": "now"}]  # train
    entries += [same, same | {"output": "hello"}]  # test
    entries += [same | {"instruction": "Speak.", "input": "now"}, same | {"input": "now"}]  # val
    write_json(tmp_path / "tasks.json", entries)
    params = InstructionsParams(prompt_style="alpaca", deduplicate="none", train_fraction=0.5, test_fraction=0.25)
    assert write_instructions(tmp_path / "tasks.json", gpt2, tmp_path / "out", params)["duplicates_across_splits"] == 3


@pytest.mark.parametrize("given_input", ["", "ocassion"])
def test_the_alpaca_prompt_is_the_books_with_the_response_header(given_input: str) -> None:
    entry = {"instruction": "Identify the correct spelling.", "input": given_input, "output": "x"}
    assert format_prompt(entry, "alpaca") == format_input(entry) + "\n\n### Response:\n"


def test_the_alpaca_prompt_reads_so() -> None:
    assert format_prompt({"instruction": "Add.", "input": "1, 2", "output": "3"}, "alpaca") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:\n"
    )


def test_the_phi3_prompt_reads_so() -> None:
    entry = {"instruction": "Add.", "input": "1, 2", "output": "3"}
    assert format_prompt(entry, "phi3") == "<|user|>\nAdd.\n1, 2\n<|assistant|>:\n"
    assert format_prompt(entry | {"input": ""}, "phi3") == "<|user|>\nAdd.\n<|assistant|>:\n"


@pytest.mark.parametrize("content", [{}, [], "text"])
def test_a_file_without_a_list_of_entries_is_refused(tmp_path: Path, content: Any) -> None:
    write_json(tmp_path / "tasks.json", content)
    fault = "expected a list of JSON, found" if content != [] else "no entry; expected entries with the texts"
    with pytest.raises(UserError, match=rf"tasks.json: {fault} .*; correct it, or take a sound copy$"):
        read_instructions(tmp_path / "tasks.json")


@pytest.mark.parametrize(
    "second", [{"instruction": "a", "input": ""}, {"instruction": 1, "input": "", "output": ""}, 3]
)
def test_the_first_incomplete_entry_is_named(tmp_path: Path, second: Any) -> None:
    write_json(tmp_path / "tasks.json", [{"instruction": "a", "input": "", "output": "b"}, second, None])
    with pytest.raises(UserError) as caught:
        read_instructions(tmp_path / "tasks.json")
    assert str(caught.value) == (
        f"{tmp_path / 'tasks.json'}: entry 1 needs the texts instruction, input, output; complete it or remove it"
    )


@pytest.mark.parametrize("half", ["\\ud83d", "\\uDE00", "\\ude00\\ud83d"])
def test_half_a_surrogate_pair_is_refused(tmp_path: Path, half: str) -> None:
    text = '[{"instruction": "Smile", "input": "", "output": "Here: ' + half + '"}]'
    (tmp_path / "tasks.json").write_text(text)
    with pytest.raises(UserError, match="tasks.json: no text: half of a surrogate pair after .*Here: '; correct it"):
        read_instructions(tmp_path / "tasks.json")


def test_a_field_that_nobody_asked_for_is_left_out(tmp_path: Path) -> None:
    write_json(tmp_path / "tasks.json", [{"instruction": "a", "input": "", "output": "b", "rejected": "c"}])
    place = f"{tmp_path / 'tasks.json'}: entry 0"
    assert read_instructions(tmp_path / "tasks.json") == [
        {"id": "task-00000", "place": place, "instruction": "a", "input": "", "output": "b"}
    ]


def test_an_empty_split_and_full_fractions_are_refused() -> None:
    with pytest.raises(
        UserError, match="the test split of the 5 records is empty; add records, or change the fr.* in tokenize.inst"
    ):
        split_instructions([{}] * 5, BOOK)
    with pytest.raises(UserError, match="fractions 0.9 and 0.1 leave nothing for the third split"):
        check_params(BOOK.model_dump() | {"train_fraction": 0.9}, InstructionsParams, source="params.yaml")


def test_a_batch_by_hand() -> None:
    inputs, targets = collate(rows((2, 2), (1, 1)), 0, 100, mask_instruction=False)
    assert inputs.tolist() == [[1, 2, 3, 4], [1, 2, 0, 0]]
    assert targets.tolist() == [[2, 3, 4, 0], [2, 0, -100, -100]]
    assert inputs.dtype == targets.dtype == "int64"


def test_with_masking_the_first_scored_token_is_the_responses_first() -> None:
    _, targets = collate(rows((2, 2), (3, 1), (1, 0)), 0, 100, mask_instruction=True)
    assert targets.tolist() == [[-100, 3, 4, 0], [-100, -100, 4, 0], [0, -100, -100, -100]]


def test_what_exceeds_the_context_is_cut_and_the_end_token_with_it() -> None:
    inputs, targets = collate(rows((2, 4), (1, 1)), 0, 3, mask_instruction=False)
    assert inputs.tolist() == [[1, 2, 3], [1, 2, 0]]
    assert targets.tolist() == [[2, 3, 4], [2, 0, -100]]
    _, targets = collate(rows((9, 1)), 0, 3, mask_instruction=True)
    assert targets.tolist() == [[-100, -100, -100]]


SEQUENCES = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=4)


@settings(deadline=None)
@given(SEQUENCES, st.integers(1, 14))
def test_without_masking_a_batch_is_the_books(lengths: list[tuple[int, int]], context_length: int) -> None:
    batch = rows(*lengths)
    inputs, targets = collate(batch, END, context_length, mask_instruction=False)
    joined = [row["prompt_token_ids"] + row["response_token_ids"] for row in batch]
    book_inputs, book_targets = custom_collate_fn(joined, pad_token_id=END, allowed_max_length=context_length)
    assert torch.equal(torch.from_numpy(inputs), book_inputs)
    assert torch.equal(torch.from_numpy(targets), book_targets)


@settings(deadline=None)
@given(SEQUENCES)
def test_masking_scores_each_response_and_its_end_and_nothing_else(lengths: list[tuple[int, int]]) -> None:
    _, targets = collate(rows(*lengths), END, 100, mask_instruction=True)
    for (prompt, response), row in zip(lengths, targets.tolist(), strict=True):
        assert [token for token in row if token != -100] == [*range(prompt + 1, prompt + response + 1), END]
