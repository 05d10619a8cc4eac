"""The project's own pages as the tests read them: blocks, code spans, and what the comments above a block say."""

import re
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES += sorted((REPOSITORY / "docs").glob("*.md"))
OWN_README = REPOSITORY / "src" / "scratchlm" / "cli" / "own_readme.md"  # of a project that `scratchlm init` makes
PAGES.append(OWN_README)
FENCE = re.compile(r"((?:^ *<!--[^\n]*-->\n)*)^( *)```(\w*)\n(.*?)^\2```$", flags=re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block. comments: what the HTML comments on the lines above it say, by their first words."""

    language: str
    text: str
    comments: dict[str, str]


def blocks(page: Path) -> list[Block]:
    found = []
    for comments, indent, language, text in FENCE.findall(page.read_text(encoding="utf-8")):
        said = dict(re.findall(r"<!-- ([\w ]+): (.*?) -->", comments))
        found.append(Block(language, re.sub(rf"^{indent}", "", text, flags=re.MULTILINE), said))
    return found


def code_spans(page: Path) -> list[str]:
    """The text of every `span` outside of blocks."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text(encoding="utf-8")))


def without_comment(line: str) -> str:
    """A line of a shell block without the comment at its end."""
    return re.sub(r"(^|\s)#.*", "", line).rstrip()


def commands(page: Path) -> list[str]:
    """Every line of a shell block without its comment, and every code span: where commands can be."""
    lines = [line for block in blocks(page) if block.language == "sh" for line in block.text.splitlines()]
    return [*map(without_comment, lines), *code_spans(page)]
