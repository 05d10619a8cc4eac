from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from scratchlm.arithmetic.random import stream
from scratchlm.data.byte_pairs import END_OF_TEXT
from scratchlm.data.tokenizer import UNKNOWN, WordTokenizer
from scratchlm.judge.overlap import normalise
from scratchlm.model.generate import Generation, SamplingParams, Stopping, generate
from scratchlm.model.gpt import GPTModel
from scratchlm.run.context import Run
from scratchlm.run.files import read_table, write_table
from scratchlm.tasks.generation import RESPONSE_SCHEMA, GenerateParams, Responder, response_counts, response_records

Build = Callable[..., GPTModel]

WORDS = WordTokenizer([*"abcdefghi", END_OF_TEXT, UNKNOWN])
GREEDY = SamplingParams(temperature=0.0, top_k=0, top_p=1.0, repetition_penalty=1.0)
SAMPLED = SamplingParams(temperature=1.2, top_k=8, top_p=0.95, repetition_penalty=1.1)


def rows(n: int) -> list[dict[str, Any]]:
    source = np.random.default_rng(3)
    return [
        {
            "id": f"task-{i:05d}",
            "instruction": f"do {i}",
            "input": "",
            "output": "a b",
            "prompt": "unused",
            "prompt_token_ids": source.integers(9, size=source.integers(1, 7)).tolist(),
            "response_token_ids": [0, 1],
        }
        for i in range(n)
    ]


def responses_of(
    model: GPTModel, rows: Any, params: GenerateParams, seed: int = 5, name: str = "instruct"
) -> list[dict[str, Any]]:
    responder = Responder(WORDS, params, Run(seed=seed))
    return [record for batch in responder.responses(model, name, rows) for record in batch]


def params(sampling: SamplingParams, batch_size: int) -> GenerateParams:
    return GenerateParams(split="test", batch_size=batch_size, max_new_tokens=12, stop=[], sampling=sampling)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_the_batch_size_does_not_change_a_response(sampling: SamplingParams, tiny_gpt: Build) -> None:
    model = tiny_gpt(context_length=32, initialisation="torch")
    one, eight = (responses_of(model, rows(19), params(sampling, n)) for n in (1, 8))
    assert one == eight
    assert [record["id"] for record in one] == [row["id"] for row in rows(19)]
    assert len({record["response"] for record in one}) > 3


def test_a_sampled_response_depends_on_seed_and_id_and_not_on_its_neighbours(tiny_gpt: Build) -> None:
    model = tiny_gpt(context_length=32)
    whole = responses_of(model, rows(9), params(SAMPLED, 4))
    assert responses_of(model, rows(9)[3:5], params(SAMPLED, 4)) == whole[3:5]
    assert responses_of(model, rows(9), params(SAMPLED, 4), seed=6) != whole
    renamed = [row | {"id": f"other-{i}"} for i, row in enumerate(rows(9))]
    responses = [record["response"] for record in responses_of(model, renamed, params(SAMPLED, 4))]
    assert responses != [record["response"] for record in whole]


def test_a_response_is_what_the_decoder_says_for_its_prompt_and_stream(tiny_gpt: Build) -> None:
    model, row = tiny_gpt(context_length=32), rows(3)[2]
    (record,) = responses_of(model, [row], params(SAMPLED, 4))
    (expected,) = generate(
        model,
        [row["prompt_token_ids"]],
        Stopping(12, WORDS.end_token_id),
        sampling=SAMPLED,
        seeds=[stream(5, f"sampling {row['id']}")],
    )
    assert record["response"] == WORDS.decode(expected.token_ids).strip()
    assert record["finished"] == expected.finished


def test_records_say_which_model_answered_what_and_fit_the_schema(tmp_path: Path, tiny_gpt: Build) -> None:
    records = responses_of(tiny_gpt(context_length=32), rows(2), params(GREEDY, 4), name="base")
    assert set(records[0]) == set(RESPONSE_SCHEMA.names)
    assert (records[1]["model"], records[1]["instruction"], records[1]["output"]) == ("base", "do 1", "a b")
    write_table(tmp_path / "responses.parquet", records, RESPONSE_SCHEMA)
    assert read_table(tmp_path / "responses.parquet") == records


def test_a_response_has_no_white_space_around_it() -> None:
    class Spaced(WordTokenizer):
        def decode(self, token_ids: Any) -> str:
            return "\n a  b \n"

    (record,) = response_records(rows(1), [Generation([0, 1], finished=True)], Spaced(WORDS.words))
    assert record == {
        "id": "task-00000",
        "instruction": "do 0",
        "input": "",
        "output": "a b",
        "response": "a  b",
        "finished": True,
    }


def test_counts_by_hand() -> None:
    records = [
        {"response": "Paris.", "output": "paris", "finished": True},
        {"response": "Paris is it", "output": "Paris", "finished": False},
        {"response": "", "output": "+", "finished": True},
    ]
    assert response_counts(records, normalise) == {"responses": 3, "finished": 2, "exact_matches": 1}
    assert response_counts([], normalise) == {"responses": 0, "finished": 0, "exact_matches": 0}


def test_parameters_that_generate_nothing_are_refused() -> None:
    for change in (
        {"split": "train"},
        {"batch_size": 0},
        {"max_new_tokens": 0},
        {"sampling": {"temperature": -1.0}},
        {"beams": 4},
    ):
        with pytest.raises(ValidationError):
            GenerateParams(**(params(GREEDY, 1).model_dump() | change))
