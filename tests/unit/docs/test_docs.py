"""What the pages name exists: commands, files, parameters, metrics, code. What the pages leave out is found too."""

import ast
import functools
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from scratchlm.cli.main import app
from scratchlm.run.files import read_json
from scratchlm.run.params import check_params, load_yaml
from scratchlm.tasks.preflight import check_together
from tests.pages import PAGES, REPOSITORY, blocks, code_spans, commands
from tools.docs_pages import api_pages, comments, parameters_page, targets

LIBRARY = REPOSITORY / "src" / "scratchlm"
PROFILES = sorted((REPOSITORY / "profiles").glob("*.yaml"))
COMMANDS = {name: command for name, command in get_command(app).commands.items() if not command.hidden}
TARGETS = {name for name, _ in targets()} | {".venv/ready"}
STAGES = {path.stem for path in (REPOSITORY / "stages").glob("[!_]*.py")}
# Files that the reader makes, or that a page takes as an example
EXAMPLES = (
    "data/mine/stories.txt",
    "comparison.",
    "intervals.svg",
    "noise.svg",
    "ratings.csv",
    "site/",
)
# Files that exist in a workspace where something was built, made, installed or interrupted; the last two below data
MADE = (
    "data/",
    "logs/",
    "exports/",
    "runs/",
    ".scratchlm/",
    ".dvc/",
    ".venv",
    "stages/X.py",
    "site/",
    "tokens/",
    "models/",
)
OTHER = {
    "origin/main",
    "adapter_config.json",
    "classifier.json",
    "config.json",
    "model.safetensors",
    "environment.json",
}
IDS = [page.name for page in PAGES]


@functools.cache
def tracked() -> frozenset[str]:
    """Every file of the repository, committed or about to be, and every folder."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    existing = [name for name in listed if (REPOSITORY / name).exists()]
    return frozenset([*existing, *(str(folder) for name in existing for folder in Path(name).parents)])


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys of a nested mapping, the inner ones too."""
    found = {}
    for key, inner in value.items():
        found[f"{prefix}{key}"] = inner
        if isinstance(inner, dict):
            found |= flat(inner, f"{prefix}{key}.")
    return found


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The values with the changes of a page; the keys of these two sections depend on their first one."""
    nested = {key for key, value in changes.items() if isinstance(values.get(key), dict) and isinstance(value, dict)}
    inner = {key: merged(values[key], changes[key]) for key in nested - {"tokenizer", "judge"}}
    return values | changes | inner


@functools.cache
def parameters() -> frozenset[str]:
    """Every dotted key of the profiles, and the optional sections that the types allow."""
    from stages.preflight import Params

    found: set[str] = set()

    def walk(schema: dict[str, Any], prefix: str, types: dict[str, Any]) -> None:
        for option in [schema, *schema.get("anyOf", []), *schema.get("oneOf", [])]:
            inner = types[option["$ref"].split("/")[-1]] if "$ref" in option else option
            for key, field in inner.get("properties", {}).items():
                found.add(f"{prefix}{key}")
                walk(field, f"{prefix}{key}.", types)

    schema = Params.model_json_schema()
    walk(schema, "", schema["$defs"])
    values = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    return frozenset(found | {f"variants.{name}" for name in values["variants"]})


@functools.cache
def metrics() -> dict[str, Any]:
    """By stage and dotted key, every committed metric."""
    folder = REPOSITORY / "metrics"
    files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.json")}
    return {key: value for name, path in files.items() for key, value in flat({name: read_json(path)}).items()}


def documented_metrics() -> list[str]:
    page = (REPOSITORY / "docs" / "metrics.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `([\w./*]+)` \|", page, flags=re.MULTILINE)


def as_pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\*", ".+"))


def is_metric(name: str) -> bool:
    return any(as_pattern(name).fullmatch(metric) for metric in metrics())


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_block_has_a_language_and_a_comment_above_it_has_a_meaning(page):
    for block in blocks(page):
        assert block.language in {"sh", "text", "toml", "yaml", "python"}, block.text
        allowed = {"sh": {"not run", "change"}, "python": {"not run"}}.get(block.language, set())
        assert block.comments.keys() <= allowed, block.text
        reason = block.comments.get("not run", "a reason")
        assert len(reason) > 6
        assert set(re.findall(r"tests/\S+\.py", reason)) <= tracked(), reason


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_command_exists(page):
    for command in commands(page):
        for target in re.findall(r"(?:^|[\s(&;])make (?:--[\w-]+ |[A-Z]+=\S* )*([\w./-]+)", command):
            assert target in TARGETS, command
        for name, rest in re.findall(r"\bscratchlm ([a-z]+)\b([^|;&)]*)", command):
            assert name in COMMANDS, command
            parts = [COMMANDS[name], *getattr(COMMANDS[name], "commands", {}).values()]
            known = {option for part in parts for p in part.params for option in (*p.opts, *p.secondary_opts)}
            assert set(re.findall(r"--[\w-]+", rest)) <= known | {"--help"}, command
        for module in re.findall(r"python3? -m ([\w.]+)", command):
            assert importlib.util.find_spec(module), command


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_file_exists(page):
    for span in code_spans(page):
        if not re.fullmatch(r"\.?[\w.@-]+(/[\w.@*+-]+)*/?", span) or span.startswith(EXAMPLES) or is_metric(span):
            continue
        if "/" in span or re.search(r"\.(py|md|ya?ml|toml|lock|json|svg|html|csv|cff)$", span):
            name = span.rstrip("/")
            assert {name, f"src/scratchlm/{name}"} & tracked() or span.startswith(MADE) or span in OTHER, span


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_link_leads_to_a_file_of_the_repository(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)|src=\"([^\"]+)\"", text):
        target = "".join(link)
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_parameter_and_metric_exists(page):
    sections = {re.split("[./]", key)[0] for key in (*parameters(), *metrics())}
    for span in code_spans(page):
        key, _, value = span.partition(": ")
        if not re.fullmatch(r"[a-z]\w*(/[\w*]+)?(\.[\w*]+)+", key) or re.split("[./]", key)[0] not in sections:
            continue
        if key.endswith((".py", ".yaml", ".json")) or key in OTHER:
            continue
        assert key in parameters() or is_metric(key), span
        if value:
            assert key in parameters(), span


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_yaml_block_is_a_part_of_params_yaml(page):
    for block in blocks(page):
        if block.language == "yaml":
            keys = set(flat(yaml.safe_load(block.text)))
            free = {
                key
                for key in keys
                if key.startswith(("pretrain_ablations.", "spam_ablations.", "variants.", "judge.second."))
                or "_runs." in key
                or re.match(r"sources\.\w+\.(path|sha256|columns\.)", key)
            }
            assert keys - free <= parameters(), block.text


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_preflight_accepts_the_sample_with_the_changes_of_any_yaml_block(page):
    from stages.preflight import Params

    sample = load_yaml(REPOSITORY / "profiles" / "sample.yaml")
    for block in blocks(page):
        if block.language != "yaml" or "data/mine" in block.text:
            continue
        changes = yaml.safe_load(block.text.replace("device: cuda", "device: cpu").replace("compile: true", ""))
        if "backend" in changes.get("judge", {"backend": None}):  # else the block goes on with another
            check_together(check_params(merged(sample, changes), Params, source=page.name, whole=True))


@pytest.mark.long
@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_python_block_runs_and_every_toml_block_is_an_entry_of_the_catalogue(page):
    from scratchlm.data.catalogue import read_catalogue

    for block in blocks(page):
        if block.language == "toml":
            assert read_catalogue(block.text)
        if block.language != "python" or "not run" in block.comments:
            continue
        command = [sys.executable, "-c", block.text]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_a_row_of_the_book_names_what_is_in_the_file():
    book = (REPOSITORY / "docs" / "book.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .* \| (.*`[\w/]+\.py`.*) \|$", book, flags=re.MULTILINE)
    assert len(rows) > 12
    for row in rows:
        for part in row.split(";"):
            (file, *_), names = re.findall(r"`([\w/]+\.py)`", part) or [""], re.findall(r"`(\w+)`", part)
            if file:
                tree = ast.parse((LIBRARY / file).read_text(encoding="utf-8"))
                defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
                assert set(names) <= defined, part


def test_every_metric_is_documented_and_every_documented_one_exists():
    numbers = {key for key, value in metrics().items() if not isinstance(value, dict)}
    documented = documented_metrics()
    assert len(documented) == len(set(documented))
    missing = {key for key in numbers if not any(as_pattern(name).fullmatch(key) for name in documented)}
    assert not missing
    unknown = {name for name in documented if not any(as_pattern(name).fullmatch(key) for key in metrics())}
    assert not unknown


def test_the_api_pages_name_every_module():
    modules = {f"scratchlm.{path.parent.name}.{path.stem}" for path in LIBRARY.glob("*/[!_]*.py")}
    named = {name for page in api_pages().values() for name in re.findall(r"^::: (\S+)$", page, flags=re.MULTILINE)}
    assert named == modules


def test_the_table_of_layers_is_that_of_the_architecture_tests():
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `(\w+)` \|", page.split("## The layers")[1].split("\n## ")[0], flags=re.MULTILINE)
    tests = (REPOSITORY / "tests" / "unit" / "test_architecture.py").read_text(encoding="utf-8")
    (layers,) = re.findall(r"^LAYERS = \((.*?)\)", tests, flags=re.MULTILINE | re.DOTALL)
    assert table == re.findall(r'"(\w+)"', layers)


def test_every_page_is_in_the_navigation():
    navigation = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:")[1]
    for page in (REPOSITORY / "docs").glob("*.md"):
        assert f": {page.name}\n" in navigation, page.name


def test_the_tolerances_of_the_page_are_those_of_the_code():
    from scratchlm.verify.tolerances import TOLERANCES

    page = (REPOSITORY / "docs" / "reproducibility.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .* \| (\d.*) \|$", page, flags=re.MULTILINE)
    numbers = [[float(number) for number in re.findall(r"[\d.]+", row)] for row in rows]
    shares = [[t.absolute, *(100 * share for share in (t.relative, t.of_examples) if share)] for t in TOLERANCES]
    assert numbers == shares


def test_readme_fits_on_a_few_screens():
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def test_images_are_small():
    images = list((REPOSITORY / "docs" / "images").iterdir())
    assert images
    assert all(path.stat().st_size < 300_000 for path in images)


def test_the_version_is_the_same_everywhere():
    (version,) = re.findall(r'^version = "(.*)"', (REPOSITORY / "pyproject.toml").read_text(), flags=re.MULTILINE)
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    released = re.findall(r"^## \[(\d.*)\]", (REPOSITORY / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert citation["version"] == version == released[0]


def test_the_hooks_before_a_commit_run_what_make_check_runs():
    targets = (REPOSITORY / "development.mk").read_text(encoding="utf-8")
    recipe = re.findall(r"^check:.*\n((?:\t.*\n)+)", targets, flags=re.MULTILINE)[0]
    (group,) = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"]
    entries = [hook["entry"].removeprefix(".venv/bin/") for hook in group["hooks"]]
    assert entries == [line.strip() for line in recipe.splitlines()]


def test_the_workflow_of_the_pages_builds_them_as_make_does_and_writes_in_one_job_only():
    workflow = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "docs.yml").read_text(encoding="utf-8"))
    steps = workflow["jobs"]["build"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["make docs"]
    assert workflow["permissions"] == {"contents": "read"}
    assert {name for name, job in workflow["jobs"].items() if "permissions" in job} == {"publish"}
    assert [step["uses"].split("@")[0] for step in workflow["jobs"]["publish"]["steps"]] == ["actions/deploy-pages"]


def test_the_jobs_of_gitlab_call_the_targets_of_those_of_github():
    def called(lines: list[str]) -> list[str]:
        return [target for line in lines for target in re.findall(r"make (?:--silent )?([a-z]+)", line)]

    def read(path: str) -> dict[str, Any]:
        return yaml.safe_load((REPOSITORY / path).read_text(encoding="utf-8"))

    assert read(".gitlab-ci.yml") == {"include": [{"local": ".gitlab/*.yml"}]}
    for gitlab, github, names in (("tests", "ci", {"test"}), ("results", "results", {"rebuild", "compare"})):
        jobs, theirs = read(f".gitlab/{gitlab}.yml"), read(f".github/workflows/{github}.yml")["jobs"]
        assert jobs.keys() - {"workflow", "variables", "default"} == names
        for name in names:
            assert jobs[name].keys() <= {"script", "image", "cache", "parallel", "rules", "artifacts"}
            steps = [step["run"] for step in theirs[name]["steps"] if "run" in step]
            assert called(jobs[name]["script"]) == called(steps) != []
        if "test" in jobs:
            versions = theirs["test"]["strategy"]["matrix"]["python"]
            assert jobs["test"]["parallel"]["matrix"] == [{"VERSION": versions}]


def test_no_page_loads_anything_from_elsewhere():
    config = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    assert "font: false" in config
    for text in [config, *(page.read_text(encoding="utf-8") for page in PAGES)]:
        assert not re.search(r"(src=|!\[.*\]\()\W?https?:|extra_javascript|mermaid", text)


def test_a_page_is_read_block_by_block(tmp_path):
    page = tmp_path / "page.md"
    fence = "```"
    page.write_text(
        f"A `span`.\n\n<!-- not run: no network -->\n{fence}sh\none  # two\n{fence}\n"
        f"\n{fence}text\n`no span`\n{fence}\n"
        f"\n- item\n\n    <!-- change: seed 7 -->\n    {fence}sh\n    three\n    {fence}\n"
    )
    assert blocks(page) == [
        ("sh", "one  # two\n", {"not run": "no network"}),
        ("text", "`no span`\n", {}),
        ("sh", "three\n", {"change": "seed 7"}),
    ]
    assert code_spans(page) == ["span"]
    assert commands(page) == ["one", "three", "span"]


def test_comments_of_params_yaml_are_found_by_their_key():
    found = comments("seed: 123   # one\nmodel:\n  size: nano # two\n  custom:\n    n: 1\n  path: x#y\n")
    assert found == {"seed": "one", "model.size": "two"}


def test_the_page_of_parameters_has_a_row_for_every_value_of_params_yaml():
    rows = set(re.findall(r"^\| `([\w.]+)` \|", parameters_page(), flags=re.MULTILINE))
    values = flat(yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8")))
    missing = {key for key, value in values.items() if not isinstance(value, dict)} - rows
    of_any_name = ("reinforce_runs.", "variants.")  # their rows say what each entry may be
    assert [key for key in missing if not key.startswith(of_any_name)] == []
