"""Hand-computed differences of small files of each kind."""

import math
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from scratchlm.run.files import write_csv, write_json, write_table
from scratchlm.verify.diff import BLOCK_BYTES, bytes_apart, difference

SCHEMA = pa.schema([("id", pa.string()), ("score", pa.float64()), ("tokens", pa.list_(pa.int32()))])
ROWS = [{"id": name, "score": score, "tokens": [1, 2]} for name, score in (("a", 1.0), ("b", 2.5), ("c", None))]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Where two versions of a file may be written; without an ending, as in a cache."""
    return tmp_path / "old", tmp_path / "new"


def flip(path: Path, place: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def test_equal_files_have_no_difference(pair):
    for path in pair:
        path.write_bytes(b"abc")
    assert difference(*pair, "x.bin") is None
    assert difference(*pair, "x.json") is None


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (b"abcd", b"abXd", "1 of 4 bytes differ, the first at 2"),
        (b"abcd", b"ab", "2 of 4 and 2 bytes differ, the first at 2"),
        (b"", b"ab", "2 of 0 and 2 bytes differ, the first at 0"),
        (b"aXcd", b"abc", "2 of 4 and 3 bytes differ, the first at 1"),
    ],
)
def test_bytes_are_counted_and_the_first_one_is_placed(pair, old, new, text):
    pair[0].write_bytes(old)
    pair[1].write_bytes(new)
    assert difference(*pair, "weights.bin").text == text


def test_bytes_are_compared_beyond_the_first_block(pair):
    for path in pair:
        path.write_bytes(bytes(2 * BLOCK_BYTES + 5))
    flip(pair[1], BLOCK_BYTES + 3)
    flip(pair[1], 2 * BLOCK_BYTES + 4)
    assert bytes_apart(*pair).text == f"2 of 2,097,157 bytes differ, the first at {BLOCK_BYTES + 3:,}"


def test_of_tensors_the_largest_difference_and_its_place_are_given(pair):
    tensors = {"a": torch.zeros(2, 3), "b": torch.ones(4), "c": torch.arange(3)}
    save_file(tensors, pair[0])
    tensors["a"][1, 2] = -0.25
    tensors["b"][0] += 0.125
    save_file(tensors, pair[1])
    found = difference(*pair, "model.safetensors")
    assert found.text == "2 of 3 tensors differ, by up to 0.25 in a"
    assert found.largest == 0.25


def test_tensors_that_only_one_has_or_of_another_shape_are_named(pair):
    save_file({"a": torch.zeros(2), "b": torch.ones(4)}, pair[0])
    save_file({"a": torch.zeros(3), "d": torch.ones(4)}, pair[1])
    assert difference(*pair, "m.safetensors").text == "not in both, or of different shape or type: a, b, d"


def test_an_infinity_that_both_have_is_no_difference(pair):
    save_file({"a": torch.tensor([-math.inf, 1.0])}, pair[0])
    save_file({"a": torch.tensor([-math.inf, 1.5])}, pair[1])
    assert difference(*pair, "m.safetensors").largest == 0.5


def test_a_number_that_became_none_is_infinitely_far(pair):
    save_file({"a": torch.zeros(2)}, pair[0])
    save_file({"a": torch.tensor([math.nan, 0])}, pair[1])
    assert difference(*pair, "m.safetensors").largest == math.inf


def test_one_flipped_bit_of_a_weight_is_found_and_measured(pair):
    for path in pair:
        save_file({"a": torch.ones(8)}, path)
    flip(pair[1], pair[1].stat().st_size - 4)  # the last mantissa bit of the last weight
    assert difference(*pair, "model.safetensors").largest == 2.0**-23


def test_a_file_that_cannot_be_read_any_more_is_compared_by_bytes(pair):
    for path in pair:
        save_file({"a": torch.ones(8)}, path)
    flip(pair[1], 0)  # the length of the header
    n = pair[0].stat().st_size
    assert difference(*pair, "m.safetensors").text == (
        f"one cannot be read as safetensors; 1 of {n} bytes differ, the first at 0"
    )


def test_rows_of_parquet_are_counted_by_column(pair):
    write_table(pair[0], ROWS, SCHEMA)
    changed = [ROWS[0] | {"score": 1.5}, ROWS[1] | {"score": 2.25, "tokens": [1]}, ROWS[2]]
    write_table(pair[1], changed, SCHEMA)
    found = difference(*pair, "x.parquet")
    assert found.text == "2 of 3 rows differ: score in 2 rows by up to 0.5, tokens in 1 row"
    assert found.largest == 0.5


def test_numbers_in_lists_are_compared_one_by_one(pair):
    """As probabilities by class: a list of pairs."""
    schema = pa.schema({"p": pa.map_(pa.string(), pa.float64())})
    write_table(pair[0], [{"p": {"a": 0.25, "b": 0.75}}, {"p": {"a": 1.0, "b": 0.0}}], schema)
    write_table(pair[1], [{"p": {"a": 0.5, "b": 0.5}}, {"p": {"a": 1.0, "b": 0.0}}], schema)
    assert difference(*pair, "x.parquet").text == "1 of 2 rows differ: p in 1 row by up to 0.25"
    write_table(pair[1], [{"p": {"c": 0.25, "b": 0.75}}, {"p": {"a": 1.0, "b": 0.0}}], schema)
    assert difference(*pair, "x.parquet").text == "1 of 2 rows differ: p in 1 row"


def test_another_number_of_rows_is_said_first(pair):
    write_table(pair[0], ROWS, SCHEMA)
    write_table(pair[1], [ROWS[0], ROWS[1] | {"id": "z"}], SCHEMA)
    assert difference(*pair, "x.parquet").text == "3 and 2 rows; 1 of 2 rows differ: id in 1 row"


def test_a_damaged_parquet_file_is_compared_by_bytes(pair):
    for path in pair:
        write_table(path, ROWS, SCHEMA)
    flip(pair[1], pair[1].stat().st_size - 1)  # the magic number
    assert difference(*pair, "x.parquet").text.startswith("one cannot be read as parquet; 1 of ")


def test_numbers_of_csv_are_compared_as_numbers(pair):
    write_csv(pair[0], [{"step": 0, "loss": 3.5}, {"step": 1, "loss": 3.0}])
    write_csv(pair[1], [{"step": 0, "loss": 3.5}, {"step": 1, "loss": 3.25}])
    found = difference(*pair, "curve.csv")
    assert found.text == "1 of 2 rows differ: loss in 1 row by up to 0.25"
    assert found.largest == 0.25


def test_keys_of_json_are_named_with_both_values(pair):
    write_json(pair[0], {"val": {"loss": 3.5, "n": 7}, "gone": True})
    write_json(pair[1], {"val": {"loss": 3.25, "n": 7}, "list": [1]})
    found = difference(*pair, "m.json")
    assert found.text == "gone True → nothing, val.loss 3.5 → 3.25, list.0 nothing → 1"
    assert found.largest == 0.25


def test_of_many_keys_the_first_are_named_and_the_others_counted(pair):
    for path, add in zip(pair, (0, 1), strict=True):
        write_json(path, {name: value + add for value, name in enumerate("abcde")})
    assert difference(*pair, "m.json").text == "a 0 → 1, b 1 → 2, c 2 → 3 and 2 more"


def test_other_bytes_with_the_same_content_are_called_that(pair):
    pair[0].write_text('{"a": 1}')
    pair[1].write_text('{"a":1}')
    assert difference(*pair, "m.json").text == "equal in content; 3 of 8 and 7 bytes differ, the first at 5"
