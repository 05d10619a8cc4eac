import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from scratchlm.formats.conversion import convert_weights
from scratchlm.formats.names import tensor_names
from scratchlm.formats.openai import hparams, load_openai, to_openai
from scratchlm.model.config import SIZES, GPTConfig, gpt2_config
from scratchlm.model.gpt import GPTModel, build_model
from scratchlm.run.errors import UserError
from scratchlm.run.files import temporary_folder, write_json

REPOSITORY = Path(__file__).resolve().parents[2]
SAMPLE = REPOSITORY / "data" / "sample" / "gpt2-nano"
CONFIG = gpt2_config("nano", 300, 16)
DATA_FILE = "model.ckpt.data-00000-of-00001"

# What the one TensorFlow process of these tests does, line by line: starting it takes seconds.
# Scalars and texts are what other programs keep beside the weights.
PROGRAM = """
import contextlib, io, json, sys
from pathlib import Path
import numpy as np
from safetensors.numpy import load_file
import tensorflow as tf
from scratchlm.formats import tensorflow_reader


def write(folder, arrays, *others):
    variables = load_file(arrays)
    variables |= {"global_step": np.int64(7)} if "scalar" in others else {}
    variables |= {"_CHECKPOINTABLE_OBJECT_GRAPH": b"graph"} if "text" in others else {}
    names = sorted(variables)
    Path(folder).mkdir(parents=True, exist_ok=True)
    tf.raw_ops.SaveV2(
        prefix=folder + "/model.ckpt",
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[variables[name] for name in names],
    )


def layout(prefix):
    reader = tf.train.load_checkpoint(prefix)
    types, shapes = reader.get_variable_to_dtype_map(), reader.get_variable_to_shape_map()
    return {name: [types[name].name, *shapes[name]] for name in shapes}


def read(prefix, output):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            tensorflow_reader.main(prefix, output)
        except SystemExit as error:
            return [error.code, "", said.getvalue()]
    return [0, "", ""]


for line in sys.stdin:
    task, arguments = json.loads(line)
    print(json.dumps(globals()[task](*arguments)), flush=True)
"""


class TensorFlow:
    """A process that writes checkpoints, lists their tensors and runs our own reader."""

    def __init__(self) -> None:
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [sys.executable, "-c", PROGRAM]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, task: str, *arguments: object) -> Any:
        assert self.process.stdin and self.process.stdout
        print(json.dumps([task, [str(argument) for argument in arguments]]), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def run(self, command: list[str], **options: object) -> subprocess.CompletedProcess:
        """In place of subprocess.run, for the command that load_openai gives it."""
        assert command[:-2] == [sys.executable, "-m", "scratchlm.formats.tensorflow_reader"]
        return subprocess.CompletedProcess(command, *self.ask("read", *command[-2:]))


def random_variables(config: GPTConfig, seed: int) -> dict[str, np.ndarray]:
    """OpenAI's variables with nothing trivially zero or one."""
    source = np.random.default_rng(seed)
    return {
        name: 0.1 * source.standard_normal(shape, dtype=np.float32) + np.float32(0.01)
        for name, shape in their_shapes(config).items()
    }


def their_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """github.com/openai/gpt-2, src/model.py, read off by hand."""
    C = config.emb_dim
    shapes = {
        "model/wte": (config.vocab_size, C),
        "model/wpe": (config.context_length, C),
        "model/ln_f/g": (C,),
        "model/ln_f/b": (C,),
    }
    for layer in range(config.n_layers):
        for name, n_in, n_out in [
            ("attn/c_attn", C, 3 * C),
            ("attn/c_proj", C, C),
            ("mlp/c_fc", C, 4 * C),
            ("mlp/c_proj", 4 * C, C),
        ]:
            shapes |= {f"model/h{layer}/{name}/w": (1, n_in, n_out), f"model/h{layer}/{name}/b": (n_out,)}
        for name in ("ln_1", "ln_2"):
            shapes |= {f"model/h{layer}/{name}/g": (C,), f"model/h{layer}/{name}/b": (C,)}
    return shapes


def torch_tensors(variables: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(variable.copy()) for name, variable in variables.items()}


def outcome(folder: Path, size: str = "nano") -> "tuple[GPTModel, int] | str":
    """What load_openai returns, or its sentence."""
    try:
        with temporary_folder(folder.parent / "model") as scratch:
            return load_openai(folder, size, scratch)  # type: ignore[arg-type]
    except UserError as error:
        return str(error)


@pytest.fixture(scope="module")
def tensorflow() -> Iterator[TensorFlow]:
    running = TensorFlow()
    yield running
    running.process.communicate()


@pytest.fixture
def started(tensorflow: TensorFlow, monkeypatch: pytest.MonkeyPatch) -> None:
    """load_openai uses the process that is already running."""
    monkeypatch.setattr(subprocess, "run", tensorflow.run)


@pytest.fixture(scope="module")
def variables() -> dict[str, np.ndarray]:
    return random_variables(CONFIG, seed=5)


@pytest.fixture(scope="module")
def checkpoints(
    tensorflow: TensorFlow, tmp_path_factory: pytest.TempPathFactory, variables: dict[str, np.ndarray]
) -> Path:
    """Real TensorFlow checkpoints, whole and spoilt, one folder each."""
    source, target = tmp_path_factory.mktemp("variables"), tmp_path_factory.mktemp("checkpoints")
    gamma = "model/h1/ln_2/g"
    written = {
        "whole": variables,
        "missing": {name: value for name, value in variables.items() if name != "model/h2/mlp/c_fc/w"},
        "misshapen": variables | {"model/h0/attn/c_attn/w": variables["model/h0/attn/c_attn/w"][:, :-1].copy()},
        "extra": variables | {"model/h3/ln_1/g": variables[gamma]},
        "scalar": variables,
        "text": variables,
    }
    for name, content in written.items():
        save_file(content, source / name)
        tensorflow.ask("write", target / name, source / name, name)
    for name in ("flipped", "truncated", "garbage", "no_index", "no_data"):
        shutil.copytree(target / "whole", target / name)
    for folder in target.iterdir():
        write_json(folder / "hparams.json", hparams(CONFIG))
    data = (target / "whole" / DATA_FILE).read_bytes()
    place = data.index(variables[gamma].tobytes()) + 10
    (target / "flipped" / DATA_FILE).write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    (target / "truncated" / DATA_FILE).write_bytes(data[: data.index(variables["model/wpe"].tobytes()) + 100])
    (target / "garbage" / "model.ckpt.index").write_bytes(b"<html>503 Service Unavailable</html>" * 40)
    (target / "no_index" / "model.ckpt.index").unlink()
    (target / "no_data" / DATA_FILE).unlink()
    return target


@pytest.fixture(scope="module")
def loaded(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[GPTModel, int]:
    """Through a process of its own, as the stage does it."""
    return load_openai(checkpoints / "whole", "nano", tmp_path_factory.mktemp("scratch"))


def test_at_every_size_each_of_our_tensors_has_one_of_theirs() -> None:
    for size in ("nano", "124M", "355M", "774M", "1558M"):
        names = list(tensor_names(SIZES[size].n_layers))
        with torch.device("meta"):
            ours = set(GPTModel(gpt2_config(size, 50257, 1024)).state_dict()) - {"head.weight"}
        for column in ("openai", "huggingface", "gguf"):
            assert len({getattr(name, column) for name in names}) == len(names)
        assert sorted(name.ours for name in names) == sorted(ours)


@pytest.mark.parametrize("size", ["124M", "355M", "774M", "1558M"])
def test_the_layout_is_that_of_the_published_code(size: str) -> None:
    config = gpt2_config(size, 50257, 1024)  # type: ignore[arg-type]
    with torch.device("meta"):
        ours = GPTModel(config).state_dict()
    shapes = {
        name.openai: (1, *ours[name.ours].shape[::-1]) if name.linear else ours[name.ours].shape
        for name in tensor_names(config.n_layers)
    }
    assert {name: tuple(shape) for name, shape in shapes.items()} == their_shapes(config)


def test_a_tensorflow_checkpoint_loads_bit_for_bit_with_every_tensor_used_once(
    loaded: tuple[GPTModel, int], variables: dict[str, np.ndarray]
) -> None:
    model, n_tensors = loaded
    weights = model.state_dict()
    assert n_tensors == len(variables) == 4 + 12 * CONFIG.n_layers
    assert model.config == CONFIG and not model.training
    # by hand: a linear layer of theirs is x @ w with w (1, C_in, C_out), torch's is x @ weight.T
    assert np.array_equal(weights["blocks.1.attention.qkv.weight"], variables["model/h1/attn/c_attn/w"][0].T)
    assert np.array_equal(weights["blocks.2.feed_forward.projection.weight"], variables["model/h2/mlp/c_proj/w"][0].T)
    assert np.array_equal(weights["blocks.0.norm2.shift"], variables["model/h0/ln_2/b"])
    assert np.array_equal(weights["position_embedding.weight"], variables["model/wpe"])
    assert model.head.weight is model.token_embedding.weight
    back = to_openai(model)
    assert sorted(back) == sorted(variables)
    for name, variable in variables.items():
        assert np.array_equal(back[name], variable), name


def test_a_loaded_checkpoint_computes_what_its_own_layout_says(
    loaded: tuple[GPTModel, int], variables: dict[str, np.ndarray]
) -> None:
    """The model of github.com/openai/gpt-2, src/model.py, in numpy and float64."""
    w = {name: value.astype(np.float64) for name, value in variables.items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        u = x.mean(-1, keepdims=True)
        s = np.square(x - u).mean(-1, keepdims=True)
        return (x - u) / np.sqrt(s + 1e-5) * w[f"{name}/g"] + w[f"{name}/b"]

    def conv1d(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}/w"][0] + w[f"{name}/b"]

    def gelu(x: np.ndarray) -> np.ndarray:
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def attention(x: np.ndarray, name: str) -> np.ndarray:
        T, C = x.shape
        q, k, v = (
            part.reshape(T, CONFIG.n_heads, -1).swapaxes(0, 1) for part in np.split(conv1d(x, f"{name}/c_attn"), 3, -1)
        )
        scores = q @ k.swapaxes(1, 2) / np.sqrt(C // CONFIG.n_heads)
        scores[:, np.triu(np.ones((T, T), bool), 1)] = -1e10
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = weights / weights.sum(-1, keepdims=True) @ v
        return conv1d(mixed.swapaxes(0, 1).reshape(T, C), f"{name}/c_proj")

    token_ids = [5, 299, 0, 17, 17, 3]
    x = w["model/wte"][token_ids] + w["model/wpe"][: len(token_ids)]
    for layer in range(CONFIG.n_layers):
        x = x + attention(norm(x, f"model/h{layer}/ln_1"), f"model/h{layer}/attn")
        hidden = gelu(conv1d(norm(x, f"model/h{layer}/ln_2"), f"model/h{layer}/mlp/c_fc"))
        x = x + conv1d(hidden, f"model/h{layer}/mlp/c_proj")
    logits = norm(x, "model/ln_f") @ w["model/wte"].T
    with torch.no_grad():
        ours = loaded[0](torch.tensor([token_ids]))[0].numpy()
    np.testing.assert_allclose(ours, logits, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("missing", "{folder}: tensor model/h2/mlp/c_fc/w is missing; fetch or export it again"),
        (
            "misshapen",
            "{folder}: tensor model/h0/attn/c_attn/w has shape (1, 127, 384), but the configuration asks for "
            "(1, 128, 384); take both from one checkpoint",
        ),
        (
            "extra",
            "{folder}: tensor model/h3/ln_1/g belongs to no part of a model of this size; fetch or export it again",
        ),
        ("scalar", "{folder}: tensor global_step belongs to no part of a model of this size; fetch or export it again"),
        (
            "text",
            "{folder}/model.ckpt: tensor _CHECKPOINTABLE_OBJECT_GRAPH holds text, which belongs to no part of a GPT-2; "
            "fetch the checkpoint again",
        ),
    ],
)
def test_a_checkpoint_with_the_wrong_tensors_is_refused_by_their_name(
    name: str, sentence: str, checkpoints: Path, started: None
) -> None:
    assert outcome(checkpoints / name) == sentence.format(folder=checkpoints / name)


@pytest.mark.parametrize(
    ("name", "start", "end"),
    [
        ("flipped", "{folder}/model.ckpt: tensor model/h1/ln_2/g is damaged (", "data file again"),
        ("truncated", "{folder}/model.ckpt: tensor model/wpe is damaged (", "data file again"),
        ("no_data", "{folder}/model.ckpt: tensor model/h0/attn/c_attn/b is damaged (", "data file again"),
        ("garbage", "{folder}/model.ckpt.index cannot be read as a TensorFlow checkpoint (", "; fetch it again"),
        ("no_index", "{folder}/model.ckpt.index cannot be read as a TensorFlow checkpoint (", "; fetch it again"),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_one_sentence_that_names_the_place(
    name: str, start: str, end: str, checkpoints: Path, started: None
) -> None:
    sentence = outcome(checkpoints / name)
    assert isinstance(sentence, str)
    assert sentence.startswith(start.format(folder=checkpoints / name)) and sentence.endswith(end)
    assert "\n" not in sentence


def test_a_damaged_checkpoint_is_refused_through_a_process_of_its_own_too(checkpoints: Path) -> None:
    folder = checkpoints / "truncated"
    assert str(outcome(folder)).startswith(f"{folder}/model.ckpt: tensor model/wpe is damaged (")


def test_wrong_hparams_are_refused_before_tensorflow_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    asked = "but size 124M is {'n_layers': 12, 'n_heads': 12, 'emb_dim': 768}; correct gpt2_sizes"
    write_json(tmp_path / "hparams.json", hparams(CONFIG))
    sentence = outcome(tmp_path, "124M")
    assert isinstance(sentence, str)
    assert sentence.startswith(f"{tmp_path / 'hparams.json'} says {{") and sentence.endswith(asked)
    assert "'n_embd': 128" in sentence
    write_json(tmp_path / "hparams.json", {"n_ctx": 16})
    assert outcome(tmp_path) == f"{tmp_path / 'hparams.json'}: 'n_vocab' is missing; fetch the file again"
    (tmp_path / "hparams.json").write_text("{")
    assert str(outcome(tmp_path)).startswith(f"{tmp_path / 'hparams.json'}: not valid JSON")
    (tmp_path / "hparams.json").unlink()
    assert str(outcome(tmp_path)).startswith(f"{tmp_path / 'hparams.json'}: no such file")


def test_hparams_that_disagree_with_the_tensors_name_the_first_tensor(
    checkpoints: Path, started: None, tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoints / "whole", tmp_path / "gpt2")
    write_json(folder / "hparams.json", hparams(CONFIG) | {"n_vocab": 301})
    assert outcome(folder) == (
        f"{folder}: tensor model/wte has shape (300, 128), but the configuration asks for (301, 128); "
        "take both from one checkpoint"
    )


def test_each_tensor_in_turn_is_missed_and_measured(variables: dict[str, np.ndarray]) -> None:
    tensors = torch_tensors(variables)
    for name, tensor in tensors.items():
        with pytest.raises(UserError, match=f"^here: tensor {name} is missing; "):
            convert_weights(CONFIG, {other: tensors[other] for other in tensors if other != name}, "openai", "here")
        with pytest.raises(UserError, match=f"^here: tensor {name} has shape "):
            convert_weights(CONFIG, tensors | {name: torch.cat([tensor, tensor])}, "openai", "here")


def test_to_openai_and_back_is_the_same_model() -> None:
    model = build_model(CONFIG, seed=3)
    again = convert_weights(CONFIG, torch_tensors(to_openai(model)), "openai", "here")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_a_model_without_biases_or_with_its_own_head_has_no_openai_form() -> None:
    for change in ({"tied_head": False}, {"qkv_bias": False}):
        with pytest.raises(AssertionError):
            to_openai(build_model(CONFIG.model_copy(update=change), seed=3))


def test_the_committed_sample_checkpoint_loads(started: None, tmp_path: Path) -> None:
    if not (SAMPLE / "model.ckpt.index").exists():
        pytest.skip(f"the sample checkpoint is not made yet: {SAMPLE}")
    model, n_tensors = load_openai(SAMPLE, "nano", tmp_path)
    assert n_tensors == 40
    assert json.loads((SAMPLE / "hparams.json").read_text()) == hparams(model.config)
    assert model.config.vocab_size == len(json.loads((SAMPLE / "encoder.json").read_text()))
