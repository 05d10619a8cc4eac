"""The 124M model gives the numbers that the book prints and that the book's own package computes."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from llms_from_scratch.ch02 import GPTDatasetV1
from llms_from_scratch.ch04 import GPTModel as BookModel
from llms_from_scratch.ch04 import generate_text_simple
from llms_from_scratch.ch05 import calc_loss_batch, calc_loss_loader, evaluate_model
from torch import Tensor
from torch.nn.functional import dropout
from torch.utils.data import DataLoader

from scratchlm.arithmetic import fused
from scratchlm.arithmetic.autograd import collect_gradients
from scratchlm.arithmetic.mode import use_exact
from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.model.config import GPTConfig
from scratchlm.model.generate import Stopping, generate
from scratchlm.model.gpt import GPTModel
from scratchlm.training.optimizer import ExactAdamW
from tests.conftest import Inputs

HELLO_I_AM = [15496, 11, 314, 716]
SEED = 123
CPU = torch.device("cpu")

# Printed in the book's section 5.2, every five steps: train loss, val loss
PRINTED = [
    (9.781, 9.933), (8.111, 8.339), (6.661, 7.048), (5.961, 6.616), (5.726, 6.600), (5.201, 6.348),
    (4.417, 6.278), (4.069, 6.226), (3.732, 6.160), (2.850, 6.179), (2.427, 6.141), (2.104, 6.134),
    (1.882, 6.233), (1.320, 6.238), (0.985, 6.242), (0.717, 6.293), (0.541, 6.393), (0.391, 6.452),
]  # fmt: skip


class Loaders(NamedTuple):
    train: DataLoader
    val: DataLoader


def book_model(context_length: int) -> GPTModel:
    torch.manual_seed(SEED)
    config = GPTConfig(
        vocab_size=50257,
        context_length=context_length,
        emb_dim=768,
        n_heads=12,
        n_layers=12,
        dropout=0.1,
        qkv_bias=False,
        tied_head=False,
        initialisation="torch",
        attention="eager",
    )
    return GPTModel(config)


@pytest.fixture(scope="module")
def untrained() -> GPTModel:
    return book_model(context_length=256).eval()


@pytest.fixture
def random_stream() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.fixture(scope="module")
def loaders(inputs: Inputs) -> Loaders:
    """The book's section 5.1.3: split by characters at nine tenths, windows of 256, batches of 2."""
    text = inputs.corpus.read_text("utf-8")
    encoding = load_tokenizer(inputs.vocabulary).encoding
    border = int(0.9 * len(text))
    train, val = (GPTDatasetV1(part, encoding, 256, 256) for part in (text[:border], text[border:]))
    return Loaders(DataLoader(train, 2, shuffle=True, drop_last=True), DataLoader(val, 2))


def test_the_untrained_val_loss_is_the_published_one(untrained: GPTModel, loaders: Loaders) -> None:
    with torch.no_grad():
        assert calc_loss_loader(loaders.val, untrained, CPU) == pytest.approx(10.98110, abs=1e-4)


@pytest.mark.slow
def test_the_untrained_train_loss_is_the_published_one(
    untrained: GPTModel, loaders: Loaders, random_stream: None
) -> None:
    torch.manual_seed(SEED)
    with torch.no_grad():
        assert calc_loss_loader(loaders.train, untrained, CPU) == pytest.approx(10.98758, abs=1e-4)


@pytest.mark.slow
def test_greedy_text_of_the_untrained_model_is_what_the_books_package_writes(
    untrained: GPTModel, random_stream: None
) -> None:
    torch.manual_seed(SEED)
    shape = {"vocab_size": 50257, "context_length": 256, "emb_dim": 768, "n_heads": 12, "n_layers": 12}
    book = BookModel(shape | {"drop_rate": 0.1, "qkv_bias": False}).eval()
    expected = generate_text_simple(book, torch.tensor([HELLO_I_AM]), max_new_tokens=10, context_size=256)
    [ours] = generate(untrained, [HELLO_I_AM], Stopping(10, None))
    assert HELLO_I_AM + ours.token_ids == expected[0].tolist()


def test_greedy_text_at_context_1024_is_what_chapter_4_prints(random_stream: None) -> None:
    [ours] = generate(book_model(context_length=1024), [HELLO_I_AM], Stopping(6, None))
    assert ours.token_ids == [27018, 24086, 47843, 30961, 42348, 7267]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "exact"])
def test_the_books_training_loop_gives_the_printed_trajectory(
    precision: str, loaders: Loaders, random_stream: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = book_model(context_length=256)
    if precision == "exact":  # the same weights and dropout to begin with, which are torch's draws
        use_exact(True, torch.get_num_threads())
        monkeypatch.setattr(fused, "dropout_factors", torchs_dropout)
    settings = {"lr": 0.0004, "betas": (0.9, 0.999), "weight_decay": 0.1}
    optimizer = {"float32": torch.optim.AdamW, "exact": ExactAdamW}[precision](model.parameters(), **settings)
    losses: list[tuple[float, float]] = []
    step = 0
    for _ in range(10):
        model.train()
        for inputs, targets in loaders.train:
            optimizer.zero_grad()
            calc_loss_batch(inputs, targets, model, CPU).backward()
            collect_gradients(model)
            optimizer.step()
            if step % 5 == 0:
                losses.append(evaluate_model(model, loaders.train, loaders.val, CPU, eval_iter=5))
            step += 1
    use_exact(False)
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(PRINTED), atol=0.01, rtol=0)


def torchs_dropout(rows: Tensor, n_columns: int, drawing: tuple[int, int], probability: float) -> Tensor:
    return dropout(torch.ones(*rows.shape, n_columns), probability)
