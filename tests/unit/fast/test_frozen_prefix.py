"""Classification without padding and with cached frozen blocks, against the textbook classifier."""

from typing import get_args

import pytest
import torch

from scratchlm.fast import frozen_prefix
from scratchlm.fast.frozen_prefix import Texts, n_frozen_blocks, worth_caching
from scratchlm.model.classifier import GPTClassifier, Position, Trainable, freeze
from tests.unit.model.test_classifier import LENGTHS, TINY, TOKEN_IDS, classifier


@pytest.mark.parametrize("position", get_args(Position))
@pytest.mark.parametrize("trainable", get_args(Trainable))
def test_logits_and_gradients_without_padding_are_the_textbook_classifiers(
    position: Position, trainable: Trainable
) -> None:
    unpadded, found = Texts(TOKEN_IDS, LENGTHS), []
    for textbook in (True, False):
        model = classifier(position).double()
        freeze(model, trainable)
        logits = model(TOKEN_IDS, LENGTHS) if textbook else unpadded.class_logits(model, TOKEN_IDS, LENGTHS)
        logits.square().sum().backward()
        found.append((logits.detach(), {path: p.grad for path, p in model.named_parameters() if p.requires_grad}))
    torch.testing.assert_close(found[1], found[0], atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("position", get_args(Position))
@pytest.mark.parametrize(
    ("trainable", "n_frozen"), [("head", 3), ("last_block", 2), ("last_two_blocks", 1), ("all", 0)]
)
def test_cached_blocks_give_the_same_logits_and_gradients(
    position: Position, trainable: Trainable, n_frozen: int
) -> None:
    model = classifier(position)
    freeze(model, trainable)
    assert n_frozen_blocks(model) == n_frozen
    texts, chosen, found = Texts(TOKEN_IDS, LENGTHS), [3, 0, 2], []
    for _ in range(2):
        model.zero_grad()
        logits = texts.class_logits(model, *texts.batch(chosen))
        logits.square().sum().backward()
        found.append((logits.detach(), [p.grad for p in model.parameters() if p.grad is not None]))
        texts.cache_frozen_blocks(model, batch_size=3)
    torch.testing.assert_close(found[1], found[0], atol=1e-6, rtol=1e-5)


def test_cached_blocks_do_not_run_again() -> None:
    model, computed = classifier("last_real"), []
    freeze(model, "last_block")
    for number, block in enumerate(model.backbone.blocks):
        block.norm1.register_forward_hook(lambda *_, number=number: computed.append(number))
    texts = Texts(TOKEN_IDS, LENGTHS)
    texts.class_logits(model, *texts.batch([0, 1]))
    assert computed == [0, 1, 2]
    texts.cache_frozen_blocks(model, batch_size=4)
    assert computed == [0, 1, 2, 0, 1]
    texts.class_logits(model, *texts.batch([0, 1]))
    assert computed == [0, 1, 2, 0, 1, 2]
    assert model.training


def test_blocks_are_cached_where_nothing_is_dropped_and_memory_suffices(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, model = [Texts(TOKEN_IDS, LENGTHS)] * 2, classifier("last")
    needed = 2 * TOKEN_IDS.numel() * TINY.emb_dim * 4
    for n_bytes, expected in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(frozen_prefix, "CACHED_BYTES", n_bytes)
        assert worth_caching(model, texts) == expected
    monkeypatch.undo()
    model.backbone.config = TINY.model_copy(update={"dropout": 0.1})
    assert isinstance(model, GPTClassifier) and not worth_caching(model, texts)
