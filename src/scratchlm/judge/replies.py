"""Replies of language models, kept on disk: an interrupted or repeated run asks only what is new."""

import hashlib
import json
import re
import threading
from collections import defaultdict
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from scratchlm.run.errors import UserError
from scratchlm.run.files import read_json, write_text

UNFINISHED = re.compile(r"\.[0-9a-f]{64}\.json\.\d+\.tmp")  # of a killed run


class Replies:
    """A file for each reply, named by the hash of everything that the reply depends on."""

    def __init__(self, folder: Path | None) -> None:
        """Without a folder nothing is kept."""
        self._folder = folder
        for path in folder.glob(".*.tmp") if folder else ():
            if UNFINISHED.fullmatch(path.name):
                path.unlink()
        self._asked: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def asking(self, question: Any) -> AbstractContextManager[Any]:
        """Within the block no other thread asks the same question: it waits, and then finds the reply here."""
        return self._asked[_hash(question)]

    def get(self, question: Any) -> str | None:
        """question: JSON values: the judge's identity, the prompt and the options. A damaged file is no reply."""
        if self._folder:
            with suppress(UserError):
                kept = read_json(self._path(question)).get("reply")
                return kept if isinstance(kept, str) else None
        return None

    def put(self, question: Any, reply: str) -> None:
        if self._folder and self.get(question) != reply:
            write_text(self._path(question), json.dumps({"question": question, "reply": reply}) + "\n")

    def _path(self, question: Any) -> Path:
        assert self._folder
        return self._folder / f"{_hash(question)}.json"


def _hash(question: Any) -> str:
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()
