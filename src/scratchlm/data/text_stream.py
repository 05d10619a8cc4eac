"""Text from tokens as they come, for a terminal or a client that reads along."""

from collections.abc import Callable, Sequence

from scratchlm.model.generate import cut_at

INCOMPLETE = "\ufffd"  # what decoding shows for bytes that are no whole character


class TextStream:
    """The text of a growing list of tokens. What the next tokens may change waits: the bytes of an incomplete
    character, and what may become one of the stop strings.

    decode: token ids to text. stopped: whether a stop string has come; the text ends before it.
    """

    def __init__(self, decode: Callable[[list[int]], str], stops: Sequence[str] = ()) -> None:
        self._decode, self._stops = decode, stops
        self.token_ids: list[int] = []
        self.stopped = False
        self._n_returned = 0

    def add(self, token_id: int) -> str:
        """The text that one more token makes certain."""
        self.token_ids.append(token_id)
        text = self._decode(self.token_ids)
        cut = cut_at(text, self._stops)
        if len(cut) < len(text):
            self.stopped = True
            return self._next(cut)
        whole = text.rstrip(INCOMPLETE)
        begun = [n for stop in self._stops for n in range(1, len(stop)) if whole.endswith(stop[:n])]
        return self._next(whole[: len(whole) - max(begun, default=0)])

    def rest(self) -> str:
        """The text that was held back, when no more tokens come."""
        return "" if self.stopped else self._next(self._decode(self.token_ids))

    def _next(self, text: str) -> str:
        new = text[self._n_returned :]
        self._n_returned = max(self._n_returned, len(text))
        return new
