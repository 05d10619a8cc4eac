"""The layout of the real GPT-2 124M checkpoint, from its index; the weights are not needed."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from scratchlm.formats.names import tensor_names
from scratchlm.formats.openai import hparams, load_openai, to_openai
from scratchlm.model.config import gpt2_config
from tests.pipeline.test_openai import TensorFlow, their_shapes


@pytest.fixture(scope="module")
def process() -> Iterator[TensorFlow]:
    started = TensorFlow()
    yield started
    started.process.communicate()


def test_the_layout_is_that_of_the_real_124M_index(real: Path, process: TensorFlow) -> None:
    found = process.ask("layout", real / "gpt2-124M" / "model.ckpt")
    config = gpt2_config("124M", 50257, 1024)
    assert json.loads((real / "gpt2-124M" / "hparams.json").read_text()) == hparams(config)
    assert found == {name: ["float32", *shape] for name, shape in their_shapes(config).items()}
    assert set(found) == {name.openai for name in tensor_names(12)}
    assert len(found) == 148


@pytest.mark.slow
def test_a_checkpoint_with_the_whole_real_124M_layout_loads_with_every_tensor_used_once(
    real: Path, process: TensorFlow, tmp_path: Path
) -> None:
    layout = process.ask("layout", real / "gpt2-124M" / "model.ckpt")
    source = np.random.default_rng(0)
    written = {name: source.standard_normal(shape, dtype=np.float32) for name, (_, *shape) in layout.items()}
    folder = tmp_path / "gpt2-124M"
    save_file(written, tmp_path / "source")
    process.ask("write", folder, tmp_path / "source")
    shutil.copy(real / "gpt2-124M" / "hparams.json", folder)
    model, n_tensors = load_openai(folder, "124M", tmp_path)
    assert n_tensors == 148
    back = to_openai(model)
    assert sorted(back) == sorted(written)
    for name, variable in written.items():
        assert np.array_equal(back[name], variable), name
