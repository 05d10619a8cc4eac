import random
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from scratchlm.data.near_duplicates import N_VALUES, SHINGLE_WORDS, signatures, similar, write_signatures
from scratchlm.run.errors import UserError
from tests.conftest import Inputs


def shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[^\W_]+", text.lower())
    return {tuple(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1))}


def jaccard(a: str, b: str) -> float:
    return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


def edited(text: str, n_words: int, draws: random.Random) -> str:
    words = text.split()
    for i in draws.sample(range(len(words)), n_words):
        words[i] = "Xenon"
    return " ".join(words)


@pytest.fixture
def documents(inputs: Inputs) -> list[str]:
    """Texts of 150 words and copies of them with up to eight other words, in any order."""
    words, draws = inputs.corpus.read_text(encoding="utf-8").split(), random.Random(1)
    texts = [" ".join(words[i : i + 150]) for i in range(0, len(words) - 150, 150)]
    copies = [edited(draws.choice(texts), n, draws) for n in [0, 1, 2, 3, 5, 8] * 5]
    found = texts + copies + [texts[0].upper(), texts[1].replace(" ", "  \n"), texts[2] + " And so on.", "", "", "one"]
    draws.shuffle(found)
    return found


def written(folder: Path, documents: list[str], n_files: int) -> list[Path]:
    paths = []
    for number, part in enumerate(np.array_split(np.arange(len(documents)), n_files)):
        paths.append(folder / f"{n_files}-{number}")
        write_signatures((documents[i] for i in part), paths[-1])
    return paths


@pytest.mark.long
@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
def test_what_is_dropped_is_what_jaccards_similarity_of_all_pairs_says(
    tmp_path: Path, documents: list[str], threshold: float
) -> None:
    (dropped,) = similar(written(tmp_path, documents, 1), threshold)
    margin = 0.1  # of the estimate: more than two standard errors
    surely, perhaps = set(), set()
    for i, k in combinations(range(len(documents)), 2):
        similarity = jaccard(documents[i], documents[k])
        surely |= {k} if similarity >= threshold + margin or similarity == 1 else set()
        perhaps |= {i, k} if similarity >= threshold - margin else set()
    assert len(surely) > 5
    assert surely <= set(dropped.tolist()) <= perhaps
    assert perhaps != surely


def test_files_only_divide_the_documents(tmp_path: Path, documents: list[str]) -> None:
    (expected,) = similar(written(tmp_path, documents, 1), 0.8)
    paths = written(tmp_path, documents, 7)
    (tmp_path / "none").touch()
    found = similar([tmp_path / "none", *paths, tmp_path / "none"], 0.8)
    assert len(found[0]) == len(found[-1]) == 0
    starts = np.cumsum([0, *(path.stat().st_size // (4 * N_VALUES) for path in paths[:-1])])
    together = np.concatenate([part + start for part, start in zip(found[1:-1], starts, strict=True)])
    assert together.tolist() == expected.tolist()
    assert similar([], 0.8) == []


def test_the_first_document_of_a_chain_is_kept(tmp_path: Path, documents: list[str]) -> None:
    """The last resembles the second only, which resembles the first."""
    words = max(documents, key=len).split()
    chain = [" ".join([*words[i:150], *map(str, range(i))]) for i in (0, 15, 30)]
    assert jaccard(chain[0], chain[2]) < 0.7 < 0.75 < min(jaccard(*chain[:2]), jaccard(*chain[1:]))
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 0, 1)):
        (dropped,) = similar(written(tmp_path, [chain[i] for i in order], 1), 0.7)
        assert dropped.tolist() == [1, 2]


def test_a_document_has_the_same_signature_alone_among_others_and_in_pieces(
    documents: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [*documents, "?", "!", "", "a_b", "\u0939\u093f\u0928\u094d\u0926\u0940 2"]
    together = signatures(texts)
    assert np.array_equal(together, np.concatenate([signatures([text]) for text in texts]))
    assert len(np.unique(together[len(documents) :], axis=0)) == 5
    monkeypatch.setattr("scratchlm.data.corpus.CHUNK_CHARACTERS", 500)
    assert np.array_equal(together, signatures(texts))


def test_case_white_space_and_punctuation_do_not_matter() -> None:
    same = ["One, two - three; four! Five \uff53\uff49\uff58", " one TWO\nthree__four (five)  six."]
    assert np.array_equal(*signatures(same))
    assert not np.array_equal(*signatures(["one two three four five", "one two three five four"]))


def test_a_file_that_was_cut_is_named(tmp_path: Path) -> None:
    (path,) = written(tmp_path, ["a b c"], 1)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="^.*1-0: 511 bytes are no signatures of 512 bytes each"):
        similar([path], 0.8)
