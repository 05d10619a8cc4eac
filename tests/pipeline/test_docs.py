"""Every command block of README and the documentation runs, unless a comment above it says why it cannot.

A page's blocks run one after another in a copy of the built clone, as a reader would type them; `dvc` and `scratchlm`
are forked. The comment `change: KEY VALUE` stands for an edit of params.yaml that the text asks for.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.clones import IDENTITY, environment, fork_in, lend_environment, run, set_parameter
from tests.pages import OWN_README, PAGES, blocks, without_comment

HERE = [page for page in PAGES if page != OWN_README]  # whose blocks test_own_data.py runs
RUNNABLE = [page for page in HERE if any(b.language == "sh" and "not run" not in b.comments for b in blocks(page))]


@pytest.fixture(scope="module")
def checkout(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built clone on a branch main."""
    checkout = shutil.copytree(built, tmp_path_factory.mktemp("reader") / "scratchlm", symlinks=True)
    run(checkout, "git", "switch", "-q", "-C", "main")
    run(checkout, "git", "remote", "remove", "origin")
    for setting in IDENTITY[1::2]:
        run(checkout, "git", "config", *setting.split("=", 1))
    return checkout


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="make works in a virtual environment")
@pytest.mark.parametrize("page", RUNNABLE, ids=[page.name for page in RUNNABLE])
def test_the_blocks_of_a_page_run(checkout, page, tmp_path):
    reader = shutil.copytree(checkout, tmp_path / "scratchlm", symlinks=True)
    lend_environment(reader)
    fork_in(reader)
    programs = f"{reader / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    for block in blocks(page):
        if block.language != "sh" or "not run" in block.comments:
            continue
        if "change" in block.comments:
            key, value = block.comments["change"].split(maxsplit=1)
            set_parameter(reader, key, yaml.safe_load(value))
        # Not by -e, which lets the first of two commands fail that && connects
        lines = [f"{line} || exit 1" for line in map(without_comment, block.text.splitlines()) if line]
        command = ["bash", "--noprofile", "--norc", "-o", "pipefail", "-c", "\n".join(lines)]
        variables = environment(reader, PATH=programs)
        done = subprocess.run(
            command, cwd=reader, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert done.returncode == 0, block.text + done.stdout[-2000:] + done.stderr[-2000:]


def test_a_block_that_fails_is_noticed(checkout, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```sh\nscratchlm results\nscratchlm compare no-such-branch\n```\n")
    with pytest.raises(AssertionError, match="no-such-branch"):
        test_the_blocks_of_a_page_run(checkout, page, tmp_path)
