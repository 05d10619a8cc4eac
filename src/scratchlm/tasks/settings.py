"""Parameters that every evaluation of a model shares."""

from typing import Annotated

import numpy as np
from pydantic import Field

from scratchlm.run.params import Section


class EvaluationParams(Section):
    """The settings of an evaluation: the same for every model, so that metrics can be compared.

    context_length: tokens of a window of the corpus; responses use the model's own. batch_size: rows per forward pass.
    max_rows: windows, messages or responses per split in evaluations during training; final metrics use all.
    """

    context_length: Annotated[int, Field(ge=2)]
    batch_size: Annotated[int, Field(ge=1)]
    max_rows: Annotated[int, Field(ge=1)]


def evenly_spaced(n: int, at_most: int) -> np.ndarray:
    """At most `at_most` of 0..n-1, spread over the whole: the same sample at every evaluation. int64."""
    return np.linspace(0, n - 1, min(n, at_most)).astype(np.int64)
