"""What tools/exact_arm64.sh installs, without running it: that takes minutes and Debian."""

import re

from scratchlm.run.code import stage_code
from tests.clones import REPOSITORY

NOT_CALLED = {"pandas", "tokenizers"}  # imported inside functions that no golden case calls


def test_it_installs_every_package_that_the_golden_cases_import():
    script = (REPOSITORY / "tools" / "exact_arm64.sh").read_text()
    listed = re.search(r'^PACKAGES="([^"]*)"', script, re.MULTILINE)
    assert listed
    installed = {name.lower().replace("_", "-") for name in listed[1].split()} | {"torch"}
    library, lock = REPOSITORY / "src" / "scratchlm", REPOSITORY / "requirements.lock"
    imported = set(stage_code(REPOSITORY / "tests" / "golden.py", library, lock)["packages"])
    assert imported > NOT_CALLED
    assert imported - NOT_CALLED <= installed
