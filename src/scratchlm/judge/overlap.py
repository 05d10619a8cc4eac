"""Compare two texts word by word."""

import re
from collections import Counter


def normalise(text: str) -> str:
    """Return `text` in lower case, without punctuation, with single spaces; text of punctuation only keeps it."""
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split() or text.split())


def token_f1(wanted: list[str], given: list[str]) -> float:
    """Return the harmonic mean of precision and recall over the two bags of words; 0 if they share none."""
    shared = sum((Counter(wanted) & Counter(given)).values())
    return 2 * shared / (len(wanted) + len(given)) if shared else 0.0
