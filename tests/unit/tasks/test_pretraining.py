import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn import functional as F

from scratchlm.data.byte_pairs import END_OF_TEXT
from scratchlm.data.tokenizer import UNKNOWN, WordTokenizer
from scratchlm.data.windows import SHARD_SCHEMA, Corpus
from scratchlm.model.gpt import GPTModel
from scratchlm.run.errors import UserError
from scratchlm.tasks.language_model import Losses
from scratchlm.tasks.pretraining import CorpusEvaluation, PretrainParams, text_sampler
from scratchlm.tasks.settings import EvaluationParams, evenly_spaced

Build = Callable[..., GPTModel]
PARAMS = EvaluationParams(context_length=8, batch_size=3, max_rows=2)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """83 train tokens (ten windows of 8) and 35 val tokens (four), over 11 token ids, in two shards each."""
    for split, n in {"train": 83, "val": 35}.items():
        (tmp_path / split).mkdir()
        tokens = np.random.default_rng(n).integers(11, size=n).astype(np.uint32)
        for number, part in enumerate((tokens[:20], tokens[20:])):
            pq.write_table(pa.table([part], schema=SHARD_SCHEMA), tmp_path / split / f"{number:05d}.parquet")
    return tmp_path


def loss_by_hand(model: GPTModel, split: str, windows: list[int]) -> float:
    n = {"train": 83, "val": 35}[split]
    tokens = torch.from_numpy(np.random.default_rng(n).integers(11, size=n))
    with torch.no_grad():
        losses = [
            F.cross_entropy(model.eval()(tokens[None, 8 * i : 8 * i + 8])[0], tokens[8 * i + 1 : 8 * i + 9])
            for i in windows
        ]
    return torch.stack(losses).mean().item()


def test_full_metrics_take_every_val_window_and_as_many_of_train(corpus: Path, tiny_gpt: Build) -> None:
    model, evaluation = tiny_gpt(), CorpusEvaluation(Corpus(corpus), PARAMS)
    val, train = evaluation.full(model, "val"), evaluation.full(model, "train")
    assert (len(val.sums), len(train.sums)) == (4, 4)
    assert val.mean == pytest.approx(loss_by_hand(model, "val", [0, 1, 2, 3]), rel=1e-6)
    assert train.mean == pytest.approx(loss_by_hand(model, "train", [0, 3, 6, 9]), rel=1e-6)


def test_metrics_during_training_are_of_the_same_few_windows_each_time(corpus: Path, tiny_gpt: Build) -> None:
    model, evaluation = tiny_gpt(), CorpusEvaluation(Corpus(corpus), PARAMS)
    first = evaluation.evaluate(model)
    assert first == evaluation.evaluate(model)
    assert first["train_loss"] == pytest.approx(loss_by_hand(model, "train", [0, 9]), rel=1e-6)
    assert first["val_loss"] == pytest.approx(loss_by_hand(model, "val", [0, 3]), rel=1e-6)


def test_a_split_that_does_not_fill_a_window_is_refused(corpus: Path) -> None:
    evaluation = CorpusEvaluation(Corpus(corpus), PARAMS.model_copy(update={"context_length": 40}))
    with pytest.raises(UserError, match="^35 tokens do not fill one window of 40"):
        evaluation.val_ids()


def test_scores_are_loss_perplexity_and_bits_per_byte() -> None:
    losses = Losses(np.array([math.log(4), 3 * math.log(4)]), np.array([1, 3]))
    # 2 bits per token, 10 tokens in 40 bytes
    corpus = SimpleNamespace(counts={"val": {"tokens": 10, "bytes": 40}})
    evaluation = CorpusEvaluation(corpus, PARAMS)  # type: ignore[arg-type]
    assert evaluation.metrics(losses, "val") == pytest.approx(
        {"loss": math.log(4), "perplexity": 4.0, "bits_per_byte": 0.5}
    )


def test_a_windows_id_says_which_tokens_are_predicted_in_it(corpus: Path) -> None:
    ids = CorpusEvaluation(Corpus(corpus), PARAMS).val_ids()
    tokens = np.random.default_rng(35).integers(11, size=35)
    hashes = [hashlib.sha256(tokens[8 * i + 1 : 8 * i + 9].astype("<i8").tobytes()).hexdigest() for i in range(4)]
    assert ids == [f"val-0000{i}-{hashes[i][:8]}" for i in range(4)]
    shorter = CorpusEvaluation(Corpus(corpus), PARAMS.model_copy(update={"context_length": 7})).val_ids()
    assert not set(ids) & set(shorter)


# settings


@pytest.mark.parametrize(
    ("n", "at_most", "expected"),
    [(10, 4, [0, 3, 6, 9]), (5, 5, [0, 1, 2, 3, 4]), (3, 9, [0, 1, 2]), (7, 1, [0]), (1, 4, [0]), (9, 2, [0, 8])],
)
def test_a_sample_is_spread_over_the_whole(n: int, at_most: int, expected: list[int]) -> None:
    assert evenly_spaced(n, at_most).tolist() == expected


@given(n=st.integers(1, 5000), at_most=st.integers(1, 6000))
def test_a_sample_has_the_size_asked_for_and_nothing_twice(n: int, at_most: int) -> None:
    found = evenly_spaced(n, at_most)
    assert len(found) == min(n, at_most)
    assert (np.diff(found) > 0).all()
    assert found[0] >= 0 and found[-1] < n
    assert at_most == 1 or found[-1] == n - 1


@pytest.mark.parametrize("change", [{"context_length": 1}, {"batch_size": 0}, {"max_rows": 0}, {"stride": 8}])
def test_settings_that_measure_nothing_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        EvaluationParams(**(PARAMS.model_dump() | change))


def test_a_sample_continues_the_prompt_greedily(tiny_gpt: Build) -> None:
    words = WordTokenizer([*"abcdefghi", END_OF_TEXT, UNKNOWN])
    model = tiny_gpt().train()
    with torch.no_grad():  # each token is followed by the next letter
        model.position_embedding.weight.zero_()
        for block in model.blocks:
            block.attention.projection.weight.zero_()
            block.attention.projection.bias.zero_()
            block.feed_forward.projection.weight.zero_()
            block.feed_forward.projection.bias.zero_()
        hidden = model.hidden_states(torch.arange(8)[None])[0]  # (8, C)
        model.head.weight.zero_()
        model.head.weight[1:9] = hidden / hidden.norm(dim=1, keepdim=True)
    params = PretrainParams.model_construct(sample_prompt="c d", sample_tokens=4, sample_temperature=0.0)
    assert text_sampler(words, params, seed=1)(model) == {"text": "c d e f g h"}
    assert model.training
    hot = params.model_copy(update={"sample_temperature": 5.0})
    drawn = [text_sampler(words, hot, seed)(model)["text"] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
