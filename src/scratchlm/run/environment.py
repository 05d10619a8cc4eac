"""Numbers that a user gives in environment variables: they change no result, so they are no parameters."""

import os
from contextlib import suppress

from scratchlm.run.errors import UserError


def requested(variable: str, most: int, otherwise: int = 1) -> int:
    """The number in an environment variable, or else another. Raises UserError if it is no integer from 1 to `most`."""
    given, number = os.environ.get(variable, str(min(otherwise, most))), 0
    with suppress(ValueError):
        number = int(given)
    if not 1 <= number <= most:
        raise UserError(f"{variable} is {given!r}, but must be an integer from 1 to {most}; correct or unset it")
    return number
