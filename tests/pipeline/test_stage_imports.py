"""The heavy packages that a stage imports before its work begins. Every run of the stage waits for them."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.clones import REPOSITORY

HEAVY = (
    "dvc", "gguf", "httpx", "jinja2", "matplotlib", "ollama", "pandas", "pyarrow", "requests", "safetensors",
    "scipy.stats", "sklearn", "tensorflow", "tiktoken", "tokenizers", "torch", "torch._dynamo", "transformers",
    "xllamacpp",
)  # fmt: skip
MODELS = {"pyarrow", "safetensors", "tiktoken", "torch"}
IMPORTS = {
    "code": {"pyarrow"},
    # torch for the arithmetic; the parameter types import the others, in milliseconds
    "preflight": MODELS | {"requests"},
    "download": {"pyarrow", "requests"},  # pyarrow, in every stage, for checkpoints
    "tokenize": {"pyarrow", "tiktoken"},
    "pretrain": MODELS,
    "ablate_pretrain": MODELS - {"safetensors"},  # it keeps no model
    "load_gpt2": MODELS,  # TensorFlow runs in a separate process
    "load_pretrained": MODELS,
    "finetune_spam": MODELS,
    "baseline_spam": {"pyarrow"},
    "ablate_spam": MODELS,
    "finetune_instruct": MODELS,
    "finetune_preference": MODELS,
    "reward_model": MODELS,
    "reinforce": MODELS,
    "generate": MODELS,
    "judge": {"pyarrow"},
    "report": {"jinja2", "matplotlib", "pyarrow"},
}
COMPUTING = """
import sys
from pathlib import Path
from scratchlm.formats.native import load_gpt, save_gpt
from scratchlm.model.config import gpt2_config
from scratchlm.model.generate import Stopping, generate
from scratchlm.model.gpt import build_model
from scratchlm.run.context import Run
from scratchlm.fast.kernels import set_up
from scratchlm.run.device import DeviceParams
from scratchlm.training.optimizer import TrainingParams, build_optimizer

set_up(Run(), DeviceParams(device="cpu", threads=1, precision="float32", compile=False))
save_gpt(Path("model"), build_model(gpt2_config("nano", 300, 16), 0))
model = load_gpt(Path("model"))
generate(model, [[1, 2], [3]], Stopping(2, None))
settings = {"learning_rate": 0.1, "beta1": 0.9, "beta2": 0.9, "weight_decay": 0.1, "weight_decay_on": "matrices"}
optimizer = build_optimizer(model, TrainingParams.model_construct(**settings))
model.hidden_states(model.token_embedding.weight.new_zeros(1, 4).long()).sum().backward()
optimizer.step()
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())  # of a checkpoint
print(*sys.modules)
"""

TABLES = """
import sys
from pathlib import Path
import pyarrow as pa
from scratchlm.run.files import open_table, read_table, write_table
from scratchlm.run.stage import start

def main(run, *, table: Path):
    schema = pa.schema({"text": pa.string(), "number": pa.int64()})
    rows = [{"text": "a", "number": 1}, {"text": "b", "number": 2}]
    write_table(table, rows, schema)
    assert read_table(table, schema) == rows
    with open_table(table) as file:
        assert file.read()["number"].to_numpy().tolist() == [1, 2]

sys.argv = ["stage.py", "--table", "table.parquet", "--log", "log.jsonl"]
start(main)
print(*sys.modules)
"""
PANDAS = """
import pandas
from scratchlm.data.labelled_texts import read_labelled_texts
Path("messages").write_text("ham\\ta\\nspam\\tb\\n")
assert read_labelled_texts(Path("messages"), "strict", None)[0]["text"].tolist() == ["a", "b"]
frame = pandas.DataFrame({"text": ["a", None], "number": [1, 2]})
assert pa.Table.from_pandas(frame)["text"].to_pylist() == ["a", None]
assert pa.table({"number": [1, 2]}).to_pandas()["number"].tolist() == [1, 2]
"""


def modules_after(program: str, folder: Path = REPOSITORY) -> set[str]:
    """The modules that a new Python process has imported when the program ends."""
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_every_stage_is_here() -> None:
    assert set(IMPORTS) == {path.stem for path in (REPOSITORY / "stages").glob("[!_]*.py")}


@pytest.mark.parametrize("packages", sorted({frozenset(packages) for packages in IMPORTS.values()}, key=sorted))
def test_a_stage_imports_only_the_heavy_packages_that_it_needs(packages: frozenset[str]) -> None:
    """Stages of the same packages share a process, because starting one takes a second."""
    stages = ", ".join(f"stages.{stage}" for stage in IMPORTS if IMPORTS[stage] == packages)
    found = modules_after(f"import sys, {stages}; print(*sys.modules)") & set(HEAVY)
    more, fewer = sorted(found - packages), sorted(packages - found)
    assert not more, (
        f"of {stages}, one now imports {', '.join(more)} before its work begins; split the module that brings it in, "
        "import it where it is used, or, if the stage cannot do without it, add it to IMPORTS"
    )
    assert not fewer, f"none of {stages} imports {', '.join(fewer)} any more; take it out of IMPORTS"


def test_nothing_that_a_stage_computes_imports_torchs_compiler(tmp_path: Path) -> None:
    """Importing it takes a second. Determinism, the meta device and the optimizers would each do so."""
    assert "torch._dynamo" not in modules_after(COMPUTING, tmp_path)


def test_a_stage_with_tables_does_without_pandas_and_can_still_use_it(tmp_path: Path) -> None:
    assert "pandas" not in modules_after(TABLES, tmp_path)
    modules_after(TABLES + PANDAS, tmp_path)


def test_the_process_that_reads_tensorflows_files_does_without_keras_and_torch(tmp_path: Path) -> None:
    prefix = REPOSITORY / "data" / "sample" / "gpt2-nano" / "model.ckpt"
    program = f"import sys; from scratchlm.formats.tensorflow_reader import main; main({str(prefix)!r}, 'weights')"
    found = modules_after(f"{program}; print(*sys.modules)", tmp_path)
    assert "tensorflow" in found
    assert not found & {"keras", "matplotlib", "pyarrow", "sklearn", "torch"}
