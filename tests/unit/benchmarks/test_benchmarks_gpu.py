"""The GPU benchmark without a GPU: its code runs on the CPU, its numbers come from invented times."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from benchmarks import gpu, harness
from benchmarks.baselines import our_config
from benchmarks.flops import flops_per_token
from benchmarks.gpu_rows import BOOKS, COMPILED, GPT2, NANO, OURS, PEAK, SAMPLES, Place, gpu_rows
from benchmarks.harness import Contender, Row, matrix_products
from benchmarks.one_by_one import Limits, Preparation, combined, measure_prepared, prepared
from benchmarks.summary import GPU_ROWS
from scratchlm.run.files import read_json
from scratchlm.run.params import load_yaml
from tests.clones import REPOSITORY

MISSING = "dvc gguf keras ollama ruamel tensorflow xllamacpp"  # on machines with a GPU, usually
EVERY_ROW = f"""
import json, sys, torch
from functools import partial
from pathlib import Path
if sys.argv[1] == "cpu":  # generating C++ takes a minute; tests/unit/fast/test_compiler.py does so
    torch.compile = partial(torch.compile, backend="eager")
class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, *others):
        return None if name.partition(".")[0] in {MISSING.split()} else self.finder.find_spec(name, *others)
sys.meta_path[:] = map(Without, sys.meta_path)
from benchmarks import sample
from benchmarks.gpu_rows import NANO, SAMPLES, Place, gpu_rows
sample.PARAMS = Path(sys.argv[2])
for name, row in gpu_rows(NANO, Place(sys.argv[1], "eager", SAMPLES)).items():
    for contender, work in row.contenders.items():
        torch.use_deterministic_algorithms(False)  # the baselines have processes of their own elsewhere
        run = work.setup(**work.options)
        print(json.dumps([name, contender, run(), run()]))
        torch._dynamo.reset()
"""
ROWS = gpu_rows(GPT2, Place("cuda", "inductor", SAMPLES))
TRAININGS = [*ROWS["pretrain_124M"].contenders]
OURS_FIRST = TRAININGS[0]  # compiled, where the library can compile


def test_without_a_card_it_says_so_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu.py"])
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert str(stopped.value.code).startswith("no CUDA device here; ")  # a text: printed, and the status is 1


def test_a_row_has_the_same_contenders_and_targets_at_both_sizes() -> None:
    small = gpu_rows(NANO, Place("cpu", "eager", SAMPLES))
    assert [*small] == [*ROWS] == [*GPU_ROWS]
    for name, row in ROWS.items():
        assert (row.unit, [*row.contenders], row.targets) == (
            small[name].unit,
            [*small[name].contenders],
            small[name].targets,
        )
        assert set(row.targets) < set(row.contenders)


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def test_every_contender_works_where_dvc_and_tensorflow_are_missing(device: str, tmp_path: Path) -> None:
    params = load_yaml(REPOSITORY / "params.yaml")  # of the row `sample`, whose evaluations take every row
    params["model"] |= {"size": "custom", "custom": {"n_layers": 1, "n_heads": 1, "emb_dim": 8}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    variables = {key: value for key, value in os.environ.items() if key != "SCRATCHLM_MIRROR"}
    done = subprocess.run(
        [sys.executable, "-c", EVERY_ROW, device, str(tmp_path / "params.yaml")],
        cwd=REPOSITORY, env=variables | {"PYTHONPATH": f"src{os.pathsep}."}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, dict[str, float]] = {}
    for row, contender, first, second in map(json.loads, done.stdout.splitlines()):
        assert first == second > 0
        found.setdefault(row, {})[contender] = first
    assert {name: [*units] for name, units in found.items()} == {name: [*row.contenders] for name, row in ROWS.items()}
    for name in ("pretrain_124M", "pretrain_355M", "decode_1", "decode_16", "decode_110"):
        assert len({units for contender, units in found[name].items() if contender != PEAK}) == 1
    flop, flop_per_token = 2 * 2 * 64**3, flops_per_token(our_config("nano"), 16)
    assert found["pretrain_124M"]["scratchlm"] == 2 * 16
    assert found["pretrain_124M"][PEAK] == pytest.approx(flop / flop_per_token)


def invented(rates: dict[str, float]) -> Callable[..., dict[str, Any]]:
    """Stands in for measure_prepared. rates: units per second; a contender without one fails."""

    def measure(name: str, preparation: Preparation, limits: Limits) -> dict[str, Any]:
        rounds = {
            contender: {
                "units": [rates[contender]] * limits.repeats, "seconds": [1.0] * limits.repeats, "warmed_up": True,
                "peak_memory_bytes": 2**30,
            }
            for contender in preparation.pools
            if contender in rates
        }  # fmt: skip
        return {"rounds": rounds, "failed": {it: "no memory" for it in preparation.pools if it not in rates}}

    return measure


@pytest.fixture
def on_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that calls the command on a card of this name, with rates by contender."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(total_memory=2**37))
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    monkeypatch.setattr(harness, "commit", lambda: "abc")

    def call(card: str, rates: dict[str, float], *arguments: str) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: card)
        monkeypatch.setattr(gpu, "prepared", lambda row, limits, warm: nullcontext(Preparation(row.contenders, {})))
        monkeypatch.setattr(gpu, "measure_prepared", invented(rates))
        monkeypatch.setattr("sys.argv", ["gpu.py", *arguments])
        gpu.main()

    return call


PEAK_TOKENS = 800e12 / 854_438_400  # per second, of a card of 800 TFLOP/s
RATES = dict.fromkeys(TRAININGS, PEAK_TOKENS / 4) | {OURS_FIRST: PEAK_TOKENS * 5 / 8, PEAK: PEAK_TOKENS}


@pytest.mark.parametrize(
    ("card", "folder", "share"),
    [("NVIDIA H200", "gpu_nvidia-h200", 500 / 989), ("NVIDIA Unheard Of", "gpu_nvidia-unheard-of", None)],
)
def test_a_training_states_the_share_of_the_measured_peak_and_of_the_data_sheets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], on_a_card: Any, card: str, folder: str, share: float | None
) -> None:
    on_a_card(card, RATES, "--row", "pretrain_124M", "--repeats", "2")
    found = read_json(tmp_path / folder / "pretrain_124M.json")
    assert sorted(found["contenders"]) == sorted(TRAININGS)
    assert found["ratios"][PEAK] | {"peak_memory": 1} == {
        "median": 0.625, "lowest": 0.625, "highest": 0.625, "target": 0.7, "met": False, "peak_memory": 1,
    }  # fmt: skip
    assert found["ratios"]["llms-from-scratch"]["median"] == 2.5 and found["ratios"]["llms-from-scratch"]["met"]
    assert found["tflop_per_second"][OURS_FIRST] == pytest.approx(500, rel=1e-5)
    shares = found["share_of_data_sheet"]
    assert shares[OURS_FIRST] == pytest.approx(share, rel=1e-5) if share else shares is None
    assert (found["machine"]["card"]["name"], found["machine"]["card"]["memory_bytes"]) == (card, 2**37)
    assert (found["commit"], found["size"], len(found["rounds"][OURS_FIRST]["seconds"])) == ("abc", "gpt2", 2)
    printed = capsys.readouterr().out
    assert f"{card}, gpt2" in printed and ROWS["pretrain_124M"].notes in printed
    assert "\n| `pretrain_124M` " in printed


def test_what_fails_is_named_and_the_next_rows_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], on_a_card: Any
) -> None:
    rows = ("spam", "instruct", "decode_1")
    rates = dict.fromkeys((OURS, COMPILED, "scratchlm, bfloat16"), 9.0) | {"transformers": 3.0}
    with pytest.raises(SystemExit) as stopped:
        on_a_card("X", rates, *(word for row in rows for word in ("--row", row)))
    assert str(stopped.value.code).split("\n")[2:] == [
        "spam: scratchlm, float32: no memory",
        "spam: llms-from-scratch: no memory",
        "instruct: scratchlm, float32: no memory",
        "instruct: llms-from-scratch: no memory",
        "decode_1: transformers, static: no memory",
    ]
    assert sorted(path.stem for path in (tmp_path / "gpu_x").iterdir()) == sorted(rows)
    found = read_json(tmp_path / "gpu_x" / "decode_1.json")
    assert found["ratios"]["transformers"]["median"] == 3 and found["failed"] == {"transformers, static": "no memory"}
    assert "| `decode_1` " in capsys.readouterr().out

    with pytest.raises(SystemExit):
        on_a_card("X", {"transformers": 3.0}, "--row", "decode_1")
    found = read_json(tmp_path / "gpu_x" / "decode_1.json")
    assert (found["ours"], found["ratios"], [*found["contenders"]]) == (OURS_FIRST, {}, ["transformers"])


def test_a_contender_is_measured_again_beside_the_others_of_the_same_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_a_card: Any
) -> None:
    path = tmp_path / "gpu_x" / "pretrain_355M.json"
    on_a_card("X", RATES, "--row", "pretrain_355M")
    again = ("--row", "pretrain_355M", "--contender", "transformers")
    on_a_card("X", RATES | {"transformers": PEAK_TOKENS / 2}, *again)
    found = read_json(path)
    assert (found["ratios"]["transformers"]["median"], found["ratios"]["llms-from-scratch"]["median"]) == (1.25, 2.5)
    monkeypatch.setattr(harness, "commit", lambda: "def")
    on_a_card("X", RATES, *again, "--together")
    assert [*read_json(path)["contenders"]] == ["transformers"]


def _raise_what_cannot_be_pickled() -> Any:
    error = RuntimeError("backend='inductor' raised:\nout of memory")
    error.module = json  # type: ignore[attr-defined]  # as an error of torch's compiler holds one
    raise error


@pytest.mark.slow
def test_one_contender_that_fails_and_one_that_takes_too_long_leave_the_third_measured(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Warmed up or not when its turn comes; both wait for the one that hangs at the same time."""
    monkeypatch.setattr("benchmarks.one_by_one.RESERVED_SECONDS", 3)
    contenders = {
        "broken": Contender(json.loads, {"s": "{"}),
        "unpicklable": Contender(_raise_what_cannot_be_pickled, {}),
        "hanging": Contender(subprocess.call, {"args": ["sleep", "60"]}),
        "products": Contender(matrix_products, {"precision": "float32", "size": 64}),
    }
    row, limits = Row("GFLOP", contenders, {}, ""), Limits(30, 2, 1)  # of these, 18 to prepare
    with prepared(row, limits, warm=False) as cold, prepared(row, limits, warm=True) as warm:
        for preparation in (cold, warm):
            found = measure_prepared("example", preparation, limits)
            assert found["failed"].keys() == {"broken", "unpicklable", "hanging"}
            assert found["failed"]["broken"].startswith("JSONDecodeError (Expecting property name")
            assert found["failed"]["unpicklable"] == "RuntimeError (backend='inductor' raised: out of memory)"
            assert found["failed"]["hanging"] == "its process ended: out of time, or out of memory"
            assert len(found["rounds"]["products"]["seconds"]) == 2 and found["rounds"]["products"]["warmed_up"]
            assert "broken failed: JSONDecodeError" in capfd.readouterr().err


def test_a_ratio_is_of_each_round_of_ours_and_each_of_the_baselines() -> None:
    row = Row("GFLOP", {"ours": Contender(int, {}), "baseline": Contender(int, {})}, {"baseline": 2.0}, "")
    rounds = {
        "ours": {"units": [4.0, 8.0], "seconds": [1.0, 1.0], "peak_memory_bytes": 1},
        "baseline": {"units": [2.0], "seconds": [1.0], "peak_memory_bytes": 2},
    }
    ratio = combined(row, rounds)["ratios"]["baseline"]
    assert ratio == {"median": 3, "lowest": 2, "highest": 4, "target": 2.0, "met": True, "peak_memory": 0.5}


@pytest.mark.parametrize("path", ["profiles/book.yaml", "params.yaml"])
def test_pyyaml_reads_the_profiles_as_dvc_does(path: str) -> None:
    assert yaml.safe_load((REPOSITORY / path).read_text(encoding="utf-8")) == load_yaml(REPOSITORY / path)


def test_the_books_data_are_taken_where_a_mirror_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.sources.STORE", tmp_path / "store")
    monkeypatch.setenv("SCRATCHLM_MIRROR", str(tmp_path))
    for name in ("instruction-data/instruction-data.json", "gpt2-124M/encoder.json", "gpt2-124M/vocab.bpe"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert not BOOKS.is_at_hand()
    (tmp_path / "sms-spam").mkdir()
    (tmp_path / "sms-spam" / "sms+spam+collection.zip").touch()
    assert BOOKS.is_at_hand()


def test_on_a_card_a_call_ends_when_the_card_is_done_and_memory_is_the_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: happened.append("done"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 123)
    monkeypatch.setitem(harness._ready, "run", lambda: float(happened.append("started") is None))
    units, _ = harness.run_once()
    assert (units, happened) == (1.0, ["started", "done"])
    assert harness.peak_memory_bytes() == 123


@pytest.mark.gpu
def test_on_a_card_every_contender_is_measured_in_a_process_of_its_own() -> None:
    row = gpu_rows(NANO, Place("cuda", "eager", SAMPLES))["pretrain_124M"]
    limits = Limits(240, 1, 2)
    with prepared(row, limits, warm=False) as preparation:
        found = measure_prepared("pretrain_124M", preparation, limits)
    assert not found["failed"]
    assert all(it["peak_memory_bytes"] > 0 and it["warmed_up"] for it in found["rounds"].values())
