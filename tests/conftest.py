import os
import signal
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import setuptools  # noqa: F401  # before a test imports distutils, which torch's compiler then could not replace
import torch
from filelock import FileLock
from hypothesis import settings

from scratchlm.arithmetic.mode import use_exact
from scratchlm.data.byte_pairs import BytePairTokenizer
from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.model.config import GPTConfig
from scratchlm.model.gpt import GPTModel, build_model
from tests.clones import FEW_STEPS, REPOSITORY, commit, make_clone, run

THREADS = torch.get_num_threads()
SAMPLE = REPOSITORY / "data" / "sample"
PIPELINE = REPOSITORY / "tests" / "pipeline"
# Of tests/pipeline, what takes longest, longest first: else one of two processes works on one while the other has ended
FIRST = [
    "test_pipeline", "test_verify", "test_docs", "test_kills", "test_seeds", "test_workflows", "test_processors",
    "test_compare", "test_benchmark_rows", "test_stage_imports", "test_remotes", "test_own_data",
]  # fmt: skip
settings.register_profile("a machine may be busy", deadline=None)
settings.load_profile("a machine may be busy")


class Inputs(NamedTuple):
    """What a user may put into the pipeline, by path."""

    corpus: Path
    messages: Path
    instructions: Path
    vocabulary: Path  # a folder with encoder.json and vocab.bpe


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Count every test of clones and DVC as a long one. Begin with the unit tests, and end with the shortest files."""
    for item in items:
        if PIPELINE in item.path.parents:
            item.add_marker("long")
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    if PIPELINE not in item.path.parents:
        return -1
    return FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Use one thread in fast tests and all fixtures: on small tensors, threads mostly wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Let torch draw the same numbers in each run: it seeds itself at random, and a new layer draws its weights."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def usual_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Use torch's number of threads in slow tests; undo what a test has set, the arithmetic too."""
    if request.node.get_closest_marker("slow"):
        torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(1)
    use_exact(False)


@pytest.fixture
def deterministic_as_before() -> Iterator[None]:
    """Restore torch's determinism after code that sets up its process, here that of the tests, as a stage does."""
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Accept Ctrl-C: a shell that runs the tests in the background makes them and their children ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone, built with few steps and committed, with its cache. Copy it before changing it.

    All processes of a test run share it.
    """
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    clone = shared / "built" / "scratchlm"
    with FileLock(shared / "built.lock"):
        if not (shared / "built.done").exists():
            make_clone(clone, FEW_STEPS)
            run(clone, "dvc", "repro")
            commit(clone, "Build with few steps")
            (shared / "built.done").touch()
    return clone


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """The sample, with a corpus of 20,000 characters. tests/network replaces it by the real data."""
    folder = tmp_path_factory.mktemp("inputs")
    corpus = folder / "stories.txt"
    corpus.write_text((SAMPLE / "stories.txt").read_text(encoding="utf-8")[:20_000], encoding="utf-8")
    with zipfile.ZipFile(SAMPLE / "sms+spam+collection.zip") as archive:
        messages = Path(archive.extract("SMSSpamCollection", folder))
    return Inputs(corpus, messages, SAMPLE / "instruction-data.json", SAMPLE / "gpt2-nano")


@pytest.fixture(scope="session")
def gpt2(inputs: Inputs) -> BytePairTokenizer:
    """A tokenizer in GPT-2's file format."""
    return load_tokenizer(inputs.vocabulary)


@pytest.fixture(scope="session")
def training_values() -> dict[str, Any]:
    """Valid values of the parameters that every training section has."""
    return {
        "epochs": 1.0, "batch_size": 4, "max_micro_batch_size": 4, "learning_rate": 0.01, "min_learning_rate": 0.001,
        "schedule": "cosine", "warmup_steps": 2, "weight_decay": 0.1, "weight_decay_on": "matrices", "beta1": 0.9,
        "beta2": 0.99, "max_grad_norm": 1.0, "evaluate_every_steps": 100, "checkpoint_activations": False,
    }  # fmt: skip


@pytest.fixture(scope="session")
def tiny_gpt() -> Callable[..., GPTModel]:
    """A function that builds a GPT with 11 tokens and a context of 8; keywords change its configuration."""

    def build(**changes: Any) -> GPTModel:
        values = {
            "vocab_size": 11, "context_length": 8, "dropout": 0.0, "qkv_bias": True, "tied_head": False,
            "initialisation": "torch", "attention": "eager", "n_layers": 2, "n_heads": 2, "emb_dim": 8,
        }  # fmt: skip
        return build_model(GPTConfig(**values | changes), seed=1)

    return build


@pytest.fixture(scope="session")
def cpu() -> torch.device:
    return torch.device("cpu")
