"""Ask a server until a reply can be used: how often, and when to give up. Its connection is in connection.py."""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar

import httpx

from scratchlm.judge.connection import behind, cause_of, environment_proxy
from scratchlm.judge.prompt import QUESTION_CUT, load_prompt
from scratchlm.judge.protocol import Judgement, ServedModelParams
from scratchlm.judge.replies import Replies
from scratchlm.run.environment import requested
from scratchlm.run.errors import UserError

BACKOFF_SECONDS = 1.0  # before the second attempt at a server in trouble; doubled before each later one
PASSING = (408, 429, *range(500, 600))  # statuses of a server in trouble; others mean that the request is wrong
MAX_UNANSWERED = 3  # questions in a row, for each that is asked at once: then the server is the trouble, not a question
ASKED_AGAIN = "\n--- asked again ---\n"  # between the replies of a record
REQUESTS_VARIABLE, MAX_REQUESTS = "SCRATCHLM_JUDGE_REQUESTS", 64


class NoReply(Exception):
    """A question without a reply, which another attempt may get. words: what the server did."""

    def __init__(self, words: str, remedy: str = "", wait: bool = True) -> None:
        super().__init__(words)
        self.remedy, self.wait = remedy, wait


class ServedJudge(ABC):
    """A language model behind a server. server_name: in messages. remedy: for a server that is at fault."""

    server_name: ClassVar[str]
    remedy: ClassVar[str]

    def __init__(self, params: ServedModelParams, address: str, replies: Replies) -> None:
        self._params, self._address, self._replies = params, address, replies
        self._prompt, self._proxy = load_prompt(params.prompt), environment_proxy(address)
        self.n_at_once = requests_at_once()
        self._unanswered, self._counting = 0, threading.Lock()

    def score(self, entry: Mapping[str, str], response: str, repeat: int = 0) -> Judgement:
        """Return the first reply with a score, or a failure. `raw_reply` has every reply, in order.

        Raises UserError if the server is gone, refuses the request, or leaves question after question unanswered.
        """
        chat = self._prompt.messages(entry, response)
        first = repeat * (self._params.retries + 1)  # so that no two attempts have the same seed
        replies: list[str] = []
        found, trouble = Judgement(None, "", ""), None
        for attempt in range(self._params.retries + 1):
            try:
                found, trouble = self._judgement(chat, first + len(replies)), None
            except NoReply as fault:
                trouble = fault
                if fault.wait and attempt < self._params.retries:
                    time.sleep(BACKOFF_SECONDS * 2**attempt)
                continue
            replies.append(found.raw_reply)
            if found.score is not None or found.reason == QUESTION_CUT:
                break
        most = MAX_UNANSWERED * self.n_at_once  # trouble of a moment meets all of them
        with self._counting:
            self._unanswered = self._unanswered + 1 if trouble else 0
            gone = self._unanswered >= most
        if trouble and gone:
            raise self._error(f"{trouble}, and so for {most} questions in a row", trouble.remedy)
        reason = f"the server {trouble}" if trouble else found.reason
        score = None if trouble else found.score
        return Judgement(score, _storable(reason), _storable(ASKED_AGAIN.join(replies)))

    @abstractmethod
    def _judgement(self, chat: Sequence[Mapping[str, str]], draw: int) -> Judgement:
        """Return what the reply to one question says. draw: see decoding. Raises NoReply."""

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Within the block, trouble of the connection is a NoReply, or a UserError if nobody is at the address."""
        try:
            yield
        except httpx.TimeoutException:
            words = f"gave no reply within {self._params.timeout_seconds} seconds"
            remedy = "raise {section}.timeout_seconds or choose a smaller {section}.model"
            raise NoReply(words, remedy, wait=False) from None
        except (httpx.ConnectError, OSError) as error:
            raise self._error(f"cannot be reached ({cause_of(error)})") from None
        except httpx.RequestError as error:
            raise NoReply(f"broke off its reply ({cause_of(error)})") from None

    def _error(self, trouble: str, remedy: str = "") -> UserError:
        """The error for what the server did. remedy: instead of the usual one."""
        advice = (remedy or self.remedy).format(section=self._params.section)
        through, advice = behind(self._proxy, self._address, advice)
        return UserError(f"{self.server_name} at {self._address}{through} {trouble}; {advice}")


def requests_at_once() -> int:
    """How many requests a server gets at once. Raises UserError if the user's number is no integer from 1 to 64."""
    return requested(REQUESTS_VARIABLE, MAX_REQUESTS, 1)


def _storable(text: str) -> str:
    """Return a text that UTF-8 can store: JSON may escape half of a surrogate pair."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
