from pathlib import Path
from typing import Any

import pytest

from scratchlm.data.byte_pairs import BytePairTokenizer
from scratchlm.data.catalogue import CATALOGUE
from scratchlm.data.instructions import InstructionsParams, write_instructions
from scratchlm.data.preferences import (
    PreferencesParams,
    count_shared_questions,
    read_preferences,
    write_preferences,
)
from scratchlm.run.errors import UserError
from scratchlm.run.files import read_table, write_json
from scratchlm.run.params import check_params
from tests.clones import REPOSITORY

HALVES = PreferencesParams(deduplicate="none", train_fraction=0.5, test_fraction=0.25)
PAIR = {"instruction": "Say hi.", "input": "", "output": "hi", "chosen": "Hi.", "rejected": "Go away."}


def written(entries: list[Any], tokenizer: BytePairTokenizer, folder: Path) -> dict[str, Any]:
    write_json(folder / "pairs.json", entries)
    return write_preferences(folder / "pairs.json", tokenizer, folder / "out", HALVES, "alpaca")


def test_pairs_are_split_in_order_and_tokenized_with_one_prompt(gpt2: BytePairTokenizer, tmp_path: Path) -> None:
    counts = written([PAIR | {"input": str(n)} for n in range(8)], gpt2, tmp_path)
    rows = {name: read_table(tmp_path / "out" / f"{name}.parquet") for name in ("train", "test", "val")}
    assert [[row["id"] for row in split] for split in rows.values()] == [
        [f"pair-{n:05d}" for n in numbers] for numbers in ([0, 1, 2, 3], [4, 5], [6, 7])
    ]
    for row in rows["train"]:
        assert gpt2.decode(row["prompt_token_ids"]) == row["prompt"]
        assert row["prompt"].endswith(f"### Input:\n{row['input']}\n\n### Response:\n")
        assert (gpt2.decode(row["chosen_token_ids"]), gpt2.decode(row["rejected_token_ids"])) == ("Hi.", "Go away.")
    keys = ("prompt_token_ids", "chosen_token_ids", "rejected_token_ids")
    n_tokens = sum(len(row[key]) for row in rows["val"] for key in keys)
    assert counts["val"] == {"records": 2, "tokens": n_tokens}


def test_pairs_without_a_preference_are_counted_and_left_out_and_move_no_other(
    gpt2: BytePairTokenizer, tmp_path: Path
) -> None:
    entries = [PAIR | {"input": str(n)} for n in range(8)]
    entries[1] |= {"rejected": "Hi."}
    entries[6] |= {"input": "0"}
    counts = written(entries, gpt2, tmp_path)
    assert [counts[name] for name in ("read", "same_responses", "duplicates_across_splits")] == [8, 1, 1]
    assert [row["id"] for row in read_table(tmp_path / "out" / "test.parquet")] == ["pair-00004", "pair-00005"]
    assert counts["train"]["records"] == 3


@pytest.mark.parametrize(
    ("train_fraction", "test_fraction", "shared"), [(0.5, 0.25, [0, 0]), (0.75, 0.125, [2, 0]), (0.25, 0.25, [0, 2])]
)
def test_questions_that_one_source_trains_and_the_other_tests_are_counted(
    gpt2: BytePairTokenizer, tmp_path: Path, train_fraction: float, test_fraction: float, shared: list[int]
) -> None:
    """Both have the same eight questions. The first four pairs are train, the next two test."""
    written([PAIR | {"input": str(n)} for n in range(8)], gpt2, tmp_path)
    fractions = {"deduplicate": "none", "train_fraction": train_fraction, "test_fraction": test_fraction}
    params = InstructionsParams(**fractions, prompt_style="alpaca")
    write_instructions(tmp_path / "pairs.json", gpt2, tmp_path / "instructions", params)
    said: list[str] = []
    assert [*count_shared_questions(tmp_path / "instructions", tmp_path / "out", said.append).values()] == shared
    learnt, judged = shared
    sentence = (
        f"{learnt} test pairs ask what the assistant is trained on, and {judged} train pairs what it is tested on; "
    )
    assert [line.startswith(sentence) for line in said] == ([True] if any(shared) else [])


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ([], "{path}: no entry; expected entries with the texts instruction, input, chosen, rejected; correct it, or "
             "take a sound copy"),
        ([PAIR, {"instruction": "a", "input": "", "output": "b"}],
         "{path}: entry 1 needs the texts instruction, input, chosen, rejected; complete it or remove it"),
        ([PAIR | {"chosen": 3}],
         "{path}: entry 0 needs the texts instruction, input, chosen, rejected; complete it or remove it"),
        ([PAIR | {"chosen": "Go away."}] * 2,
         "{path}: chosen and rejected are equal in each of its 2 entries, so none says what is better; correct them"),
        ([PAIR] * 3,
         "the test split of the 3 records is empty; add records, or change the fractions in tokenize.preferences"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_ends_in_one_sentence(
    entries: list[Any], sentence: str, gpt2: BytePairTokenizer, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        written(entries, gpt2, tmp_path)
    assert str(caught.value) == sentence.format(path=tmp_path / "pairs.json")


def test_fractions_leave_something_for_val() -> None:
    with pytest.raises(UserError, match="fractions 0.9 and 0.1 leave nothing for the third split"):
        check_params(
            {"deduplicate": "none", "train_fraction": 0.9, "test_fraction": 0.1},
            PreferencesParams,
            source="params.yaml",
        )


def test_the_sample_has_pairs_and_the_book_s_file_is_pinned() -> None:
    assert len(read_preferences(REPOSITORY / "data" / "sample" / "preference-data.json")) == 560
    (file,) = CATALOGUE["instruction-preference"].files
    assert (file.name, file.size_bytes) == ("instruction-data-with-preference.json", 386_968)
