from tests.unit.model.conftest import torchs_kernel_at_any_length  # noqa: F401
