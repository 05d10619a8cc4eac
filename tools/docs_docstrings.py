"""For mkdocstrings: keep the lines of a docstring that name something, instead of running them into one paragraph."""

import re
from typing import Any

import griffe

NAMING = re.compile(r"\s*(?:[\w`*]+(?:, [\w`*]+)*: |Raises |Source: |Returns? )")


class DocstringLines(griffe.Extension):
    """Put a Markdown line break before each line such as `logits: (B, T, V) float` or `Source: …`."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring:
            lines = obj.docstring.value.split("\n")
            following = [*lines[1:], ""]
            obj.docstring.value = "\n".join(
                line + "  " if line and NAMING.match(after) else line
                for line, after in zip(lines, following, strict=True)
            )
