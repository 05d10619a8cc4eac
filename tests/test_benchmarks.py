"""Every row of the benchmarks runs and measures every contender; how fast is not for a test to say."""

import json
import os
from pathlib import Path

import pytest

from benchmarks.harness import Contender, Row, matrix_products, measure, results, table
from benchmarks.run import all_rows
from scratchlm.artifacts import read_json, write_json

ROWS = all_rows("TINY")


def test_every_row_has_a_small_form_of_the_same_contenders_and_bars() -> None:
    shapes = [
        {name: (row.unit, list(row.contenders), row.bars) for name, row in all_rows(kind).items()}
        for kind in ("ROWS", "TINY")
    ]
    assert shapes[0] == shapes[1]
    assert all(set(bars) < set(contenders) for _, contenders, bars in shapes[0].values())


@pytest.mark.parametrize("name", list(ROWS))
def test_a_row_measures_every_contender(name: str, tmp_path: Path) -> None:
    found = measure(name, ROWS[name], repeats=1, threads=1)
    write_json(tmp_path / "row.json", found)  # refuses what is not a number
    assert list(found["contenders"]) == list(ROWS[name].contenders)
    assert [found["ours"], *found["ratios"]] == list(ROWS[name].contenders)
    assert all(it["rate"]["lowest"] > 0 for it in found["contenders"].values())
    assert {peer: ratio["bar"] for peer, ratio in found["ratios"].items() if ratio["bar"]} == ROWS[name].bars


def test_rates_and_ratios_are_taken_round_by_round(tmp_path: Path) -> None:
    """Units over seconds each round; a slow moment that meets both in one round leaves their ratio alone."""
    row = Row("tokens", {"ours": Contender(int, {}), "peer": Contender(int, {})}, {"peer": 2.0}, "notes")
    units = {"ours": [10.0, 10.0, 10.0], "peer": [20.0, 20.0, 20.0]}
    seconds = {"ours": [1.0, 10.0, 2.0], "peer": [4.0, 40.0, 10.0]}
    found = results(row, units, seconds, {"ours": 3 * 2**20, "peer": 12 * 2**20})
    assert found["contenders"]["ours"]["rate"] == {"median": 5.0, "lowest": 1.0, "highest": 10.0}
    assert found["contenders"]["peer"]["seconds"] == {"median": 10.0, "lowest": 4.0, "highest": 40.0}
    ratio = {"median": 2.0, "lowest": 2.0, "highest": 2.5, "bar": 2.0, "met": True, "peak_memory": 0.25}
    assert found["ratios"] == {"peer": ratio}
    write_json(tmp_path / "row.json", found)
    assert read_json(tmp_path / "row.json") == json.loads(json.dumps(found))
    assert [line.split("  ") for line in table("row", found).splitlines()] != []
    header, _, ours, peer = table("row", found).splitlines()
    assert "tokens per second" in header and "peak memory" in header and "ours is … times as fast" in header
    assert "5 (1 to 10)" in ours and "3 MiB" in ours and "met" not in ours
    assert "2 (0.5 to 5)" in peer and "12 MiB" in peer and "2 (2 to 2.5)" in peer and peer.endswith("2, met")


def test_each_contender_has_a_process_and_a_peak_of_memory_of_its_own() -> None:
    contenders = {precision: Contender(matrix_products, {"precision": precision}) for precision in ("float32", "bfloat16")}
    found = measure("products", Row("GFLOP", contenders, {}, ""), repeats=2, threads=1)
    small, large = (found["contenders"][name]["peak_memory_bytes"] for name in ("bfloat16", "float32"))
    assert small < large


@pytest.mark.parametrize(
    ("broken", "why"),
    [(Contender(json.loads, {"s": "{"}), "JSONDecodeError"), (Contender(os._exit, {"status": 3}), "BrokenProcessPool")],
)
def test_a_contender_that_fails_is_named_with_its_error_in_one_sentence(broken: Contender, why: str) -> None:
    row = Row("GFLOP", {"ours": Contender(matrix_products, {"precision": "float32"}), "peer": broken}, {}, "")
    with pytest.raises(RuntimeError, match=rf"^products: contender peer failed with {why} \([^\n]*; [^\n]*$"):
        measure("products", row, repeats=1, threads=1)
