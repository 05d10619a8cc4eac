"""Numbers that a user gives in environment variables: they change no result, so they are no parameters."""

import os
from contextlib import suppress
from typing import TypeVar

from scratchlm.run.errors import UserError

LONGEST_SECONDS = 1_000_000
Number = TypeVar("Number", int, float)


def requested(variable: str, maximum: int, default: Number, minimum: int = 1) -> Number:
    """Return the number in an environment variable, an integer if `default` is one; `default` if it is not set.

    Raises UserError unless it is `minimum` to `maximum`.
    """
    kind = type(default)
    given, number = os.environ.get(variable, str(min(default, maximum))), kind(minimum - 1)
    with suppress(ValueError):
        number = kind(given)
    if not minimum <= number <= maximum:
        noun = "an integer" if kind is int else "a number"
        raise UserError(
            f"{variable} is {given!r}, but must be {noun} from {minimum} to {maximum:,}; correct or unset it"
        )
    return number
