"""The architecture that docs/architecture.md describes, one test each at least."""

import ast
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from scratchlm.run.code import imported_names, installed_version, stage_code
from scratchlm.run.params import Section

REPOSITORY = Path(__file__).resolve().parents[2]
LIBRARY = REPOSITORY / "src" / "scratchlm"
STAGES = sorted(path.stem for path in (REPOSITORY / "stages").glob("*.py") if path.stem != "__init__")
MODULES = sorted(
    ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")
    for base, folder in ((REPOSITORY / "src", LIBRARY), (REPOSITORY, REPOSITORY / "stages"))
    for path in folder.rglob("*.py")
    if path.name != "loss_kernel.py" or find_spec("triton")  # which comes with a torch for cards
)
LAYERS = (
    "cli", "serving", "cluster", "verify", "compare", "report", "judge", "tasks", "formats", "training", "data", "fast",
    "model", "arithmetic", "run",
)  # fmt: skip
PIPELINE = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
IMPORT_PROBE = """
import os, sys, logging, random
import numpy, torch, pandas, scipy.stats, sklearn.metrics, pyarrow.parquet, matplotlib, typer, ollama, httpx
state = lambda: (torch.get_rng_state().tolist(), random.getstate(), str(numpy.random.get_state()),
                 torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.cuda.is_initialized(),
                 dict(os.environ), logging.getLogger().handlers[:], sorted(os.listdir(".")))
before = state()
for name in sys.argv[1:]:
    __import__(name)
assert state() == before
"""


def definition(stage: str) -> dict:
    """A stage of dvc.yaml; of a foreach stage, what it does for each item."""
    return PIPELINE[stage].get("do", PIPELINE[stage])


def package_of(module: str) -> str:
    return module.split(".")[1]


def is_ours(name: str) -> bool:
    return name.startswith("scratchlm.") and (REPOSITORY / "src" / name.replace(".", "/")).with_suffix(".py").is_file()


@pytest.mark.long
def test_importing_any_module_does_nothing(tmp_path, tmp_path_factory):
    command = [sys.executable, "-c", IMPORT_PROBE, *MODULES]
    path = f"{REPOSITORY / 'src'}{os.pathsep}{REPOSITORY}"
    caches = tmp_path_factory.mktemp("caches")  # of other libraries, too
    variables = {**os.environ, "PYTHONPATH": path, "XDG_CACHE_HOME": str(caches)}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir()) and not (caches / "scratchlm").exists()


@pytest.mark.parametrize("package", LAYERS)
def test_imports_go_down_the_layers_only(package):
    below = LAYERS[LAYERS.index(package) :]
    for path in (LIBRARY / package).rglob("*.py"):
        for name in imported_names(path):
            assert not name.startswith("stages"), f"{path.name} imports {name}"
            assert not is_ours(name) or package_of(name) in below, f"{path.name} imports {name}"


def test_every_package_has_its_layer():
    assert {path.name for path in LIBRARY.iterdir() if path.is_dir() and path.name != "__pycache__"} <= set(LAYERS)
    assert [path.name for path in LIBRARY.glob("*.py")] == ["__init__.py"]


def test_the_model_knows_tensors_and_nothing_else():
    for path in (LIBRARY / "model").glob("*.py"):
        ours = {name for name in imported_names(path) if name.startswith("scratchlm")}
        assert all(name.startswith(("scratchlm.model", "scratchlm.arithmetic")) for name in ours), path.name
        assert not imported_names(path) & {"pathlib", "os", "io", "open"}, path.name


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_its_own_code(stage):
    deps = definition(stage)["deps"]
    if stage == "code":
        assert deps == ["requirements.lock", "src/scratchlm", "stages"]
    else:
        assert deps[0] == f"data/code/{stage}.json"
        assert not [dep for dep in deps if dep.startswith(("src", "stages", "requirements"))]


def test_packages_are_empty_so_that_no_stage_depends_on_them_unseen():
    assert [path for path in LIBRARY.rglob("__init__.py") if path.read_text()] == []


@pytest.mark.parametrize(
    "stage", [stage for stage in STAGES if stage not in ("code", "preflight", "baseline_spam", "report")]
)
def test_a_stage_reads_exactly_the_parameters_that_dvc_yaml_declares(stage):
    declared = {name.split(".")[0] for name in definition(stage)["params"] if isinstance(name, str)}
    module = __import__(f"stages.{stage}", fromlist=["Params"])
    assert set(module.Params.model_fields) == declared


def test_preflight_and_report_depend_on_the_whole_of_params_yaml():
    for stage in ("preflight", "report"):
        assert "params.yaml" in definition(stage)["deps"]
    from stages import preflight

    assert set(preflight.Params.model_fields) == set(yaml.safe_load((REPOSITORY / "params.yaml").read_text()))


def test_no_parameter_has_a_default_in_python():
    for module in MODULES:
        __import__(module)
    allowed = {("ModelParams", "custom")}  # it exists only beside size: custom
    allowed |= {("OwnSource", name) for name in ("sha256", "columns")}  # of an address, and of a table with other names
    allowed |= {("Shape", name) for name in ("n_kv_heads", "head_dim", "hidden_dim")}  # they follow from the others
    in_files = (
        "position",
        "norm",
        "feed_forward",
        "bias",
        "rms_epsilon",
        "rope_base",
        "rope_scaling",
    )  # what a stored GPT-2 leaves out
    allowed |= {("GPTConfig", name) for name in in_files} | {("BytePairSettings", "begin_token")}
    sections = [cls for cls in all_sections() if cls.__module__.startswith(("scratchlm", "stages"))]
    sections = [cls for cls in sections if cls.__module__ != "scratchlm.serving.bodies"]  # OpenAI's, with its defaults
    defaults = {(cls.__name__, name) for cls in sections for name, f in cls.model_fields.items() if not f.is_required()}
    assert len(sections) > 15
    assert defaults == allowed


def all_sections() -> list[type]:
    from pydantic import BaseModel

    def below(cls: type) -> list[type]:
        return [cls, *(deeper for child in cls.__subclasses__() for deeper in below(child))]

    return [cls for cls in below(BaseModel) if cls not in (BaseModel, Section)]


@pytest.mark.long
def test_what_is_installed_is_what_the_lock_says(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    library, lock = Path("src/scratchlm"), Path("requirements.lock")
    for stage in STAGES:
        packages = stage_code(Path("stages", f"{stage}.py"), library, lock)["packages"]
        assert "dvc" not in packages  # runs the stage; its version enters no result
        for package, version in packages.items():
            assert installed_version(package) == version, package


@pytest.mark.parametrize("stage", STAGES)
def test_no_output_keeps_a_stage_out_of_the_run_cache(stage):
    options = [entry for entry in definition(stage)["outs"] if isinstance(entry, dict)]
    assert not [entry for entry in options if {"cache", "persist"} & set(*entry.values())]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_script_is_short_and_contains_no_path(stage):
    path = REPOSITORY / "stages" / f"{stage}.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    docstrings = {ast.get_docstring(n, clean=False) for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef)}
    paths = {
        text for text in texts - docstrings if re.search(r"/|\w\.(json|csv|parquet|yaml|html|safetensors|txt)$", text)
    }
    assert not paths
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60
    tries = [node for node in ast.walk(tree) if isinstance(node, ast.Try)]
    assert len(tries) == (stage == "code")  # which runs first, and says so where the environment lacks the library


@pytest.mark.parametrize("stage", STAGES)
def test_every_path_arrives_as_a_named_option(stage):
    words = definition(stage)["cmd"].split()
    options = {words[i].removeprefix("--").replace("-", "_") for i in range(3, len(words), 2)}
    code = __import__(f"stages.{stage}", fromlist=["main"]).main.__code__
    named = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    assert words[:3] == ["python", "-m", f"stages.{stage}"]
    assert code.co_varnames[: code.co_argcount] == ("run",)
    assert options - {"resume"} == {*named, "log"}


def test_files_are_written_through_the_functions_that_make_them_whole():
    for path in LIBRARY.rglob("*.py"):
        if path.name in ("files.py", "transfer.py", "tensorflow_reader.py"):
            continue
        for function in (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)):
            calls = {ast.unparse(n.func) for n in ast.walk(function) if isinstance(n, ast.Call)}
            writes = {c for c in calls if re.search(r"\.(write_text|write_bytes|write_table|to_csv|to_parquet)$", c)}
            writes |= {c for c in calls if c in ("save_file", "open")}
            whole = calls & {"atomic_write", "atomic_folder"} or function.name.startswith("_write")
            assert not writes or whole, f"{path.name}: {function.name} writes with {writes}"


def test_metrics_hold_results_only():
    files = list((REPOSITORY / "metrics").rglob("*.json"))
    assert files
    for path in files:
        assert not re.search(r'"[^"]*(seconds|per_second|memory|time|date|host)[^"]*":', path.read_text()), path.name


def test_a_result_from_outside_says_so():
    assert "external" in definition("judge")["meta"]


def test_no_module_touches_a_global_random_stream():
    forbidden = r"(^|[^_])random\.(seed|random|shuffle|choice)\(|np\.random\.(seed|rand|choice|shuffle)|torch\.seed\("
    for path in [*LIBRARY.rglob("*.py"), *(REPOSITORY / "stages").glob("*.py")]:
        assert not re.search(forbidden, path.read_text()), path.name
    seeded = {path.name for path in LIBRARY.rglob("*.py") if "torch.manual_seed(" in path.read_text()}
    forked = {path.name for path in LIBRARY.rglob("*.py") if "fork_rng(" in path.read_text()}
    assert seeded - forked == {"loop.py", "gradients.py"}  # they own the stream that dropout draws from


def test_readme_and_dvc_yaml_and_stages_name_the_same_stages():
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `(\w+)`", readme.split("## The stages")[1].split("\n## ")[0], flags=re.MULTILINE)
    assert sorted(PIPELINE) == STAGES
    assert table == list(PIPELINE)


def test_no_module_is_too_long():
    long = {path.name: n for path in LIBRARY.rglob("*.py") if (n := len(path.read_text().splitlines())) > 300}
    assert not long
    assert max(len(path.relative_to(LIBRARY).parts) for path in LIBRARY.rglob("*.py")) <= 2


def test_no_function_takes_more_than_six_things():
    """Apart from a stage's main, which takes its paths."""
    for folder in (LIBRARY, *(REPOSITORY / name for name in ("stages", "benchmarks", "tools"))):
        for path in folder.rglob("*.py"):
            for function in (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)):
                taken = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
                names = [parameter.arg for parameter in taken if parameter.arg not in ("self", "cls")]
                is_main = folder.name == "stages" and function.name == "main"
                assert len(names) <= 6 or is_main, f"{path.name}: {function.name} takes {len(names)}"
