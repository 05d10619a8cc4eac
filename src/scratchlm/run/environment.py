"""Numbers that a user gives in environment variables: they change no result, so they are no parameters."""

import os
from contextlib import suppress

from scratchlm.run.errors import UserError


def requested(variable: str, maximum: int, default: int = 1) -> int:
    """Return the integer in an environment variable, `default` if it is not set.

    Raises UserError unless it is 1 to `maximum`.
    """
    given, number = os.environ.get(variable, str(min(default, maximum))), 0
    with suppress(ValueError):
        number = int(given)
    if not 1 <= number <= maximum:
        raise UserError(f"{variable} is {given!r}, but must be an integer from 1 to {maximum}; correct or unset it")
    return number
