"""Every input that fuzzing has kept, read again: a reader returns or refuses it in a sentence."""

from pathlib import Path

import pytest

from scratchlm.run.errors import UserError
from tests.fuzz.corpus import inputs
from tests.fuzz.targets import Target, make_folder

INPUTS = list(inputs())
NAMES = sorted({target for target, _, _ in INPUTS})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def targets(folder: Path) -> dict[str, Target]:
    return make_folder(folder)


def test_every_target_has_inputs(targets: dict[str, Target]) -> None:
    assert sorted(targets) == NAMES


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_a_kept_input_is_read_or_refused(folder: Path, targets: dict[str, Target], name: str) -> None:
    target = targets[name]
    path = folder / target.file
    before = path.read_bytes() if path.exists() else None
    refused = 0
    kept = [*target.seeds, *(content for found, _, content in INPUTS if found == name)]
    for content in kept:
        path.write_bytes(content)
        try:
            target.read(folder)
        except UserError:
            refused += 1
    if before is not None:
        path.write_bytes(before)
    assert refused < len(kept)  # a sound input, from which the fuzzer started, is among them
