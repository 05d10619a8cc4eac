"""A judge compares the responses of two revisions."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from scratchlm.compare import pairwise
from scratchlm.compare.pairwise import compare_responses, pairwise_json, pairwise_text
from scratchlm.run.errors import UserError
from scratchlm.run.files import write_text
from scratchlm.tasks.generation import RESPONSE_SCHEMA
from tests.commands import scratchlm
from tests.unit.judge.ollama_stand_in import UNTRIED, OllamaStandIn, ollama_stand_in

RED = ["red", "rot", "blue", "grey"]
RESPONSES = {
    "main": ["red", "rot", "bad", "mad"] * 3,
    "longer": ["red"] * 12,
    "workspace": ["rot"] * 4 + ["blue"] * 4 + RED,
    "other": ["red", "rot", "blue"],
}


class Held:
    """A revision that holds responses to tasks whose right answer is red."""

    root = Path()

    def __init__(self, name: str) -> None:
        self.name, self.commit = name, "03c6b50" * 5

    def __str__(self) -> str:
        return f"{self.name} (03c6b50)"

    def table(self, path: str) -> pa.Table:
        assert path == "data/responses/generate/instruct.parquet"
        task = {"model": "instruct", "instruction": "Say red", "input": "", "output": "red", "finished": True}
        rows = [task | {"id": f"task-{i}", "response": text} for i, text in enumerate(RESPONSES[self.name])]
        return pa.Table.from_pylist(rows, schema=RESPONSE_SCHEMA)


def prefers_red(request: dict[str, Any]) -> str:
    first, second = re.findall(r"<(?:first|second)>\n(.*?)\n</", request["messages"][1]["content"], re.DOTALL)
    better = "neither" if "red" not in (first, second) else "first" if first == "red" else "second"
    return json.dumps({"reason": "x", "better": better})


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in for the judge of the params.yaml in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pairwise, "Revision", Held)
    with ollama_stand_in(prefers_red) as server:
        asked = {"prompt": "anchored", "timeout_seconds": 20.0, "retries": 0, "seed": 1, "max_new_tokens": 64}
        judge = {
            "backend": "ollama",
            "model": "llama3",
            **UNTRIED,
            **asked,
            "host": server.host,
            "context_tokens": 2048,
        }
        write_text(tmp_path / "params.yaml", json.dumps({"judge": judge, "seed": 1}))
        yield server


def test_each_revision_is_compared_with_the_first_and_nothing_is_asked_twice(server: OllamaStandIn) -> None:
    better, worse = compare_responses(["main", "longer", "workspace"])
    assert [better.metrics[name] for name in ("wins", "ties", "losses")] == [9, 3, 0]
    assert [worse.metrics[name] for name in ("wins", "ties", "losses")] == [0, 10, 2]
    assert (better.records[1]["baseline"], better.records[1]["model"]) == ("main", "longer")
    n_asked = len(server.requests)
    assert n_asked == len({json.dumps(request) for request in server.requests})
    (alone,) = compare_responses(["main"])
    assert alone.metrics == worse.metrics
    assert len(server.requests) == n_asked
    assert any(Path(".scratchlm/replies").iterdir())


def test_the_text_is_a_table_and_a_verdict(server: OllamaStandIn) -> None:
    outcomes = compare_responses(["main", "longer"])
    text = pairwise_text(outcomes)
    assert text.startswith("longer (03c6b50) compared with main (03c6b50) by llama3\n\n")
    assert re.search(r"^wins +9 *$", text, re.MULTILINE)
    assert re.search(r"^win rate +0\.875 +0\.\d{3} to 0\.\d{3}$", text, re.MULTILINE)
    assert "contradiction" not in text.partition("equal length")[0]
    assert "\n\nlonger is better.\n\n" in text
    assert max(map(len, text.splitlines())) <= 120
    assert "| wins " in pairwise_text(outcomes, markdown=True)
    assert "main is worse." in pairwise_text(compare_responses(["longer", "main"]))
    assert "There is no evidence of a difference." in pairwise_text(compare_responses(["main"]))


def test_a_win_by_length_alone_is_said(server: OllamaStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RESPONSES, "main", ["rot"] * 20 + ["red"] * 6)
    monkeypatch.setitem(RESPONSES, "longer", ["red"] * 26)
    (outcome,) = compare_responses(["main", "longer"])
    rates = dict.fromkeys(("length_controlled_win_rate_low", "length_controlled_win_rate_high"), 0.5)
    found = [outcome._replace(metrics={**outcome.metrics, **rates})]
    assert "\n\nlonger is better, but not at equal length.\n\n" in pairwise_text(found)


def test_the_json_has_every_answer(server: OllamaStandIn) -> None:
    (found,) = json.loads(pairwise_json(compare_responses(["main", "longer"])))
    assert found["baseline"] == {"revision": "main", "commit": "03c6b50" * 5}
    assert len(found["records"]) == found["metrics"]["responses"] == 12
    assert found["judge"]["backend"] == "ollama"


def test_other_instructions_are_refused(server: OllamaStandIn) -> None:
    with pytest.raises(UserError, match=r"^main and other have responses to different instructions; build both with"):
        compare_responses(["main", "other"])
    assert not server.requests


def test_a_judge_without_a_language_model_cannot_compare(server: OllamaStandIn, tmp_path: Path) -> None:
    write_text(tmp_path / "params.yaml", json.dumps({"judge": {"backend": "reference", "controls": 1}}))
    with pytest.raises(UserError, match=r"^judge.backend is reference, which cannot say which .* language model"):
        compare_responses(["main"])


@pytest.mark.parametrize(
    ("words", "check"),
    [
        (("--format", "json"), lambda out: json.loads(out)[0]["metrics"]["wins"] == 9),
        (("--format", "markdown"), lambda out: out.startswith("### longer")),
        ((), lambda out: out.startswith("longer (")),
    ],
)
def test_the_command(
    server: OllamaStandIn, tmp_path: Path, words: tuple[str, ...], check: Callable[[str], bool]
) -> None:
    done = scratchlm(tmp_path, "compare", "--pairwise", *words, "main", "longer")
    assert done.returncode == 0 and check(done.stdout), done.stderr


@pytest.mark.parametrize("words", [("--format", "all"), ("--plot", "a.svg"), ("--fail-if", "worse")])
def test_options_without_a_meaning_are_refused(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = scratchlm(tmp_path, "compare", "--pairwise", *words, "main")
    assert "scratchlm: --pairwise goes with --format text, json or markdown only" in done.stderr
