import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from scratchlm.cli.main import app, main
from tests.clones import REPOSITORY


def commands(group: Any, *before: str) -> Iterator[list[str]]:
    yield [*before]
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, *before, name)


@pytest.mark.parametrize("words", [*commands(typer.main.get_command(app))], ids=" ".join)
def test_help_fits_80_columns_and_shows_no_value_for_a_flag(words):
    shown = CliRunner().invoke(app, [*words, "--help"], terminal_width=80).output
    assert max(map(len, shown.splitlines())) <= 80
    assert re.search("^  --help +[A-Z]", shown, flags=re.MULTILINE) and "<bool>" not in shown
    assert "..." not in shown.partition("Commands:")[2]  # of a sentence that is cut


def test_the_list_of_make_fits_80_columns():
    shown = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert len(shown.splitlines()) > 10 and max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("words", ["chat", "results", "sources", "rate", "tokens red", "repair"])
def test_outside_of_a_project_a_command_says_so(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["scratchlm", *words.split()])
    with pytest.raises(
        SystemExit, match=f"^scratchlm: {tmp_path} is not in a clone of the project; run scratchlm inside"
    ):
        main()
