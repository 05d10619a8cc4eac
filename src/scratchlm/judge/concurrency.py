"""Several questions asked at once: a server that answers requests together is idle while it has only one."""

from collections.abc import Callable, Generator, Iterable
from multiprocessing.pool import ThreadPool
from typing import TypeVar

from scratchlm.run.environment import requested

VARIABLE, MAX_REQUESTS = "SCRATCHLM_JUDGE_REQUESTS", 64

Question = TypeVar("Question")
Answer = TypeVar("Answer")


def requests_at_once() -> int:
    """How many requests a server gets at once. Raises UserError if the user's number is no integer from 1 to 64."""
    return requested(VARIABLE, MAX_REQUESTS, 1)


def in_order(
    ask: Callable[[Question], Answer], questions: Iterable[Question], n_at_once: int
) -> Generator[Answer, None, None]:
    """Yield the answer to each question, in their order, while up to n_at_once are asked.

    Raises what `ask` raised. Nothing more is asked once that is raised here, or once this is closed.
    """
    if n_at_once == 1:
        yield from map(ask, questions)
        return
    with ThreadPool(n_at_once) as pool:  # its end, like that of the process, waits for no answer
        yield from pool.imap(ask, questions)
