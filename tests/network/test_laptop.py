"""The profile `laptop`, on real data."""

import os
from pathlib import Path

import pytest

from tests.pipeline.test_twins import assert_twins


@pytest.mark.slow
def test_two_clones_of_laptop_that_share_nothing_have_the_same_lock_file_and_metrics(tmp_path: Path) -> None:
    assert_twins(tmp_path, "laptop", SCRATCHLM_MIRROR=os.environ.get("SCRATCHLM_MIRROR", ""))
