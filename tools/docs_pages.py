"""The pages of the documentation that come from elsewhere: the files in the root, command line, parameters, API.

MkDocs loads this file as a hook in .venv-docs, which has neither torch nor this package's other dependencies. For the
pages that import the package, the hook starts this file again with the project's own Python, the first on PATH:
`python -m tools.docs_pages cli`. The API pages are read from the sources without importing them.
"""

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "src" / "scratchlm"
PROFILES = ("sample", "laptop", "book")
# Files of the root that are pages too
ROOT_PAGES = {"README": "index", "CONTRIBUTING": "contributing", "CHANGELOG": "changelog", "LOG": "log"}
CHARTS = "benchmarks/results/*.svg"


def on_config(config: Any) -> Any:
    """MkDocs calls this first: fill the navigation's entry `API`, one page for each package."""
    reference = next(entry["Reference"] for entry in config.nav if "Reference" in entry)
    reference[-1] = {"API": [f"api/{name}.md" for name in api_pages()]}
    return config


def on_files(files: Any, config: Any) -> Any:
    """MkDocs calls this once a build: add the generated pages."""
    from mkdocs.structure.files import File

    pages = {f"{page}.md": root_page(name) for name, page in ROOT_PAGES.items()}
    pages |= {f"api/{package}.md": page for package, page in api_pages().items()}
    for name in PAGES:
        command = ["python", "-m", "tools.docs_pages", name]
        pages[f"{name}.md"] = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    for chart in ROOT.glob(CHARTS):
        files.append(File.generated(config, f"images/{chart.name}", abs_src_path=str(chart)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs calls this for each page: lead links out of docs/ to the pages and charts that come from there."""
    for name, page in ROOT_PAGES.items():
        markdown = markdown.replace(f"](../{name}.md", f"]({page}.md")
    return markdown.replace("](../benchmarks/results/", "](images/")


def root_page(name: str) -> str:
    """A Markdown file of the root with links as they are on the site."""
    text = (ROOT / f"{name}.md").read_text(encoding="utf-8")
    text = re.sub(r"(\]\(|src=\")docs/", r"\1", text)
    for other, page in ROOT_PAGES.items():
        text = text.replace(f"]({other}.md", f"]({page}.md")
    return text


def api_pages() -> dict[str, str]:
    """By package of the library, a page that mkdocstrings fills from the docstrings of its modules."""
    pages = {}
    for package in sorted(path.parent for path in LIBRARY.glob("*/__init__.py")):
        modules = sorted(path.stem for path in package.glob("*.py") if path.stem != "__init__")
        identifiers = [f"scratchlm.{package.name}.{module}" for module in modules]
        pages[package.name] = "\n\n".join([f"# {package.name}", *(f"::: {name}" for name in identifiers)]) + "\n"
    return pages


def cli_page() -> str:
    """The targets of the Makefile, and every command of `scratchlm` with its --help."""
    import typer.main
    from typer.testing import CliRunner

    from scratchlm.cli.main import app

    parts = [
        "# Command line",
        "This page is taken from the programs when it is built.",
        "## make",
        "`make` creates the environment `.venv` when a target needs it.",
        "| target | what it does |\n|---|---|\n" + "\n".join(f"| `make {name}` | {text} |" for name, text in targets()),
        "## scratchlm",
        "Activate the environment first: `source .venv/bin/activate`. Run the commands in the project's folder. "
        "A mistake in a command or a parameter ends in one sentence and status 1. `verify` also returns 1 if a result "
        "is not as it was committed, and `compare` returns 3 if a condition of `--fail-if` holds.",
    ]
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    names = [name for name, command in commands.items() if not command.hidden]
    names += [f"{name} {inner}" for name in names for inner in getattr(commands[name], "commands", ())]
    for name in sorted(names):
        words = [*name.split(), "--help"]
        shown = CliRunner().invoke(app, words, prog_name="scratchlm", terminal_width=88, color=False)
        parts += [f"### scratchlm {name}", f"```text\n{shown.output.strip()}\n```"]
    return "\n\n".join(parts) + "\n"


def targets() -> list[tuple[str, str]]:
    """The targets of the Makefile and of development.mk that have a description, in their order."""
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", "development.mk"))
    return re.findall(r"^([a-z0-9-]+):.*## +(.*)", text, flags=re.MULTILINE)


def parameters_page() -> str:
    """Every key of params.yaml: what is allowed, what it means, and its value in three profiles."""
    import yaml

    from stages.preflight import Params

    schema = Params.model_json_schema()
    texts = {name: (ROOT / "profiles" / f"{name}.yaml").read_text(encoding="utf-8") for name in PROFILES}
    values = {name: yaml.safe_load(text) for name, text in texts.items()}
    remarks = {key: text for name in reversed(PROFILES) for key, text in comments(texts[name]).items()}
    parts = [
        "# Parameters",
        "Every key of `params.yaml`, from the types in the code. No parameter has a default, so `params.yaml` always "
        "gives every key, except those that the last column ties to a condition. The values are those of the "
        "[profiles](configure.md#profiles).",
    ]
    alone: list[str] = []
    for key in values["sample"]:
        rows = _merged(_rows(key, schema["properties"][key], schema["$defs"], ""))
        intro, meanings = _described(key, Params.model_fields[key].annotation)
        lines = [_row(*row, remarks | meanings, values) for row in rows]
        if len(lines) == 1:
            alone += lines
        else:
            opening = intro if len(intro) < 2 else ["\n".join(f"- {remark}" for remark in intro)]
            parts += [f"## {key}", *opening, _HEAD + "\n".join(lines)]
    parts[2:2] = ["## Top level", _HEAD + "\n".join(alone)]
    return "\n\n".join(parts) + "\n"


_HEAD = f"| key | allowed | {' | '.join(PROFILES)} | meaning |\n|---|---|{'---|' * len(PROFILES)}---|\n"


def comments(text: str) -> dict[str, str]:
    """By dotted key, the comment at the end of its line in a params.yaml."""
    found, path = {}, []
    for line in text.splitlines():
        if match := re.match(r"( *)(\w+):(?:.*?\s# *(.*)|.*)$", line):
            depth = len(match[1]) // 2
            path = [*path[:depth], match[2]]
            if match[3] and not match[3].startswith("or "):  # the types say what else is allowed
                found[".".join(path)] = match[3]
    return found


def _rows(key: str, field: dict[str, Any], types: dict[str, Any], when: str) -> Iterator[tuple[str, str, str]]:
    """key, allowed values and condition of every parameter under `key`."""
    options = field.get("anyOf") or [field]
    kind = next((option["discriminator"]["propertyName"] for option in options if "discriminator" in option), None)
    options = [inner for option in options for inner in option.get("oneOf", [option])]
    sections = [types[option["$ref"].split("/")[-1]] for option in options if "$ref" in option]
    simple = [option for option in options if "$ref" not in option]
    if simple:
        yield key, " or ".join(filter(None, map(_allowed, simple))) + (" or a section" if sections else ""), when
    for section in sections:
        condition = f"{kind}: {section['properties'][kind]['const']}" if kind else when
        for name, inner in section["properties"].items():
            yield from _rows(f"{key}.{name}", inner, types, "" if name == kind and not when else condition)


def _merged(rows: Iterator[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """The same with one row for a key that several kinds of a section have."""
    merged: dict[str, tuple[str, str]] = {}
    for key, allowed, when in rows:
        if key in merged:
            allowed, when = ", ".join(dict.fromkeys(f"{merged[key][0]}, {allowed}".split(", "))), ""
        merged[key] = allowed, when
    return [(key, *rest) for key, rest in merged.items()]


def _allowed(schema: dict[str, Any]) -> str:
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema:
        return " or ".join(map(_allowed, schema["anyOf"]))
    kind = schema.get("type")
    if kind == "array":
        return f"a list of {_allowed(schema['items'])}"
    if kind == "object":
        return "a mapping"
    limits = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
    bounds = [f"{sign} {schema[name]:,}" for name, sign in limits if name in schema]
    name = {"integer": "integer", "number": "number", "string": "text", "boolean": "`true`, `false`", "null": "`null`"}
    return " ".join([name[str(kind)], " and ".join(bounds)]).strip()


def _row(key: str, allowed: str, when: str, notes: dict[str, str], values: dict[str, Any]) -> str:
    cells = [_shown(_at(values[name], key)) for name in PROFILES]
    note = notes.get(key, "")
    if set(re.findall(r"[\w-]+", note)) <= {*re.findall(r"[\w-]+", allowed), "or"}:
        note = ""  # a list of what is allowed
    meaning = ": ".join(filter(None, [f"only with `{when}`" if when else "", note]))
    return f"| `{key}` | {allowed} | {' | '.join(cells)} | {meaning} |"


def _at(value: Any, key: str) -> Any:
    for part in key.split("."):
        value = value.get(part, "") if isinstance(value, dict) else ""
    return value


def _shown(value: Any) -> str:
    if value == "":
        return ""
    text = "null" if value is None else value if isinstance(value, str) else json.dumps(value).replace('"', "")
    return "(section)" if isinstance(value, dict) and value else f"`{text!r}`" if "\n" in text else f"`{text}`"


def _described(key: str, annotation: Any, label: str = "") -> tuple[list[str], dict[str, str]]:
    """What the docstrings of a section's types say of it, and by dotted key of its parameters.

    label: the start of each sentence on the section itself.
    """
    intro: list[str] = []
    meanings: dict[str, str] = {}
    if isinstance(annotation, type) and hasattr(annotation, "model_fields"):
        fields = annotation.model_fields
        names = rf"(?:{'|'.join(fields)}|\w+_\*)"
        for model in reversed(annotation.__mro__):
            if not hasattr(model, "model_fields") or model.__name__ in ("Strict", "Section", "BaseModel"):
                continue
            # A line that begins a sentence after the end of another is a remark, or begins the next parameter
            for part in re.split(r"(?<=\.)\n+(?=[A-Z])", inspect.cleandoc(model.__dict__.get("__doc__") or "")):
                pattern = rf"(?:^|(?<=[.;] ))({names}(?:, {names})*): "
                start, *pairs = re.split(pattern, " ".join(part.split()))
                if start.strip() and model is annotation:
                    intro += [f"{label}{start.strip().rstrip('.;')}."]
                for wanted, meaning in zip(pairs[::2], pairs[1::2], strict=True):
                    patterns = wanted.split(", ")
                    named = [name for name in fields if any(fnmatch(name, pattern) for pattern in patterns)]
                    meanings |= {f"{key}.{name}": meaning.strip().rstrip(".") for name in named}
        inner = [(f"{key}.{name}", field.annotation) for name, field in fields.items()]
    else:
        inner = [(key, part) for part in get_args(annotation)]
    for name, part in inner:
        kind = _kind(part)
        shown = f"`{kind}`: " if kind else label if name == key else f"`{name}`: "
        more, also = _described(name, part, shown)
        intro += more
        meanings |= also
    return intro, meanings


def _kind(section: Any) -> str | None:
    """The value that tells this section from the others of a union, such as `bpe` of tokenizer.kind."""
    for field in getattr(section, "model_fields", {}).values():
        if get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1:
            return get_args(field.annotation)[0]
    return None


PAGES = {"cli": cli_page, "parameters": parameters_page}

if __name__ == "__main__":
    sys.stdout.write(PAGES[sys.argv[1]]())
