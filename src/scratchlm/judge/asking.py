"""Ask a server until a reply can be used: how often, with which settings, and when to give up."""

import threading
import time
from collections.abc import Callable
from typing import Any

from scratchlm.judge.prompt import GREEDY, QUESTION_CUT
from scratchlm.judge.protocol import Judgement
from scratchlm.run.errors import UserError

BACKOFF_SECONDS = 1.0  # before the second attempt at a server in trouble; doubled before each later one
PASSING = (408, 429, *range(500, 600))  # statuses of a server in trouble; others mean that the request is wrong
MAX_UNANSWERED = 3  # questions in a row, for each that is asked at once: then the server is the trouble, not a question
SAMPLED = {"temperature": 0.5, "top_k": 40}
ASKED_AGAIN = "\n--- asked again ---\n"  # between the replies of a record


class NoReply(Exception):
    """A question without a reply, which another attempt may get. words: what the server did."""

    def __init__(self, words: str, remedy: str = "", wait: bool = True) -> None:
        super().__init__(words)
        self.remedy, self.wait = remedy, wait


class Attempts:
    """The attempts at each question of a run."""

    def __init__(self, retries: int, error: Callable[[str, str], UserError], n_at_once: int = 1) -> None:
        """error: the error for what the server did and a remedy, which may be "". n_at_once: questions in progress."""
        self._retries, self._error, self._unanswered = retries, error, 0
        self._most = MAX_UNANSWERED * n_at_once  # trouble of a moment meets all of them
        self._counting = threading.Lock()

    def judgement(self, ask: Callable[[int], Judgement]) -> Judgement:
        """Return the first reply with a score, or a failure. `raw_reply` has every reply, in order.

        ask: what the reply to one question says, given the number of unusable replies before. It raises NoReply.
        Raises UserError if too many questions in a row have no reply.
        """
        replies: list[str] = []
        found, trouble = Judgement(None, "", ""), None
        for attempt in range(self._retries + 1):
            try:
                found, trouble = ask(len(replies)), None
            except NoReply as fault:
                trouble = fault
                if fault.wait and attempt < self._retries:
                    time.sleep(BACKOFF_SECONDS * 2**attempt)
                continue
            replies.append(found.raw_reply)
            if found.score is not None or found.reason == QUESTION_CUT:
                break
        with self._counting:
            self._unanswered = self._unanswered + 1 if trouble else 0
            gone = self._unanswered >= self._most
        if trouble and gone:
            raise self._error(f"{trouble}, and so for {self._most} questions in a row", trouble.remedy)
        reason = f"the server {trouble}" if trouble else found.reason
        score = None if trouble else found.score
        return Judgement(score, _storable(reason), _storable(ASKED_AGAIN.join(replies)))


def decoding(seed: int, draw: int) -> dict[str, Any]:
    """Return the decoding settings: draw 0 is greedy, later ones are sampled, each with another seed."""
    return GREEDY | {"seed": seed + draw} | (SAMPLED if draw else {})


def _storable(text: str) -> str:
    """Return a text that UTF-8 can store: JSON may escape half of a surrogate pair."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
