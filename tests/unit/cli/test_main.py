"""How every command ends."""

from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.commands import scratchlm


@pytest.mark.parametrize(
    ("words", "called"),
    [
        (["results"], "scratchlm.cli.results.read_headline"),
        (["sources"], "scratchlm.cli.sources.load_yaml"),
        (["sources", "add", "data/mine/a.csv", "--as", "messages"], "scratchlm.cli.sources.load_yaml"),
    ],
)
def test_ctrl_c_ends_a_command_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], called: str
) -> None:
    monkeypatch.setattr(called, Mock(side_effect=KeyboardInterrupt))
    done = scratchlm(tmp_path, *words)
    assert (done.returncode, done.stderr) == (1, "scratchlm: interrupted; run this again\n")
