"""Jinja templates, the same way for every page and card."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template


def read_template(path: Path, filters: Mapping[str, Callable[..., Any]]) -> Template:
    """Return the template in `path`: of HTML with escaped values, of Markdown (.md.jinja) with the values as they are.

    A name that it uses and does not get raises jinja2.UndefinedError.
    """
    environment = Environment(
        autoescape=".html" in path.suffixes, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= filters
    return environment.from_string(path.read_text(encoding="utf-8"))
