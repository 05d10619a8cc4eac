from collections.abc import Iterator

import pytest

from scratchlm.model import attention


@pytest.fixture(autouse=True, scope="module")
def torchs_kernel_at_any_length() -> Iterator[None]:
    """Else `sdpa` would be the eager form for texts as short as the tests'."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "EAGER_UP_TO", 0)
        yield
