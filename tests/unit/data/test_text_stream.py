"""Text as its tokens come: every byte is a token here, so that characters and stop strings come in pieces."""

from hypothesis import given
from hypothesis import strategies as st

from scratchlm.data.text_stream import TextStream
from scratchlm.model.generate import cut_at


def decode(token_ids: list[int]) -> str:
    return bytes(token_ids).decode(errors="replace")


def pieces(data: bytes, stops: list[str]) -> tuple[list[str], bool]:
    stream = TextStream(decode, stops)
    found = []
    for byte in data:
        found.append(stream.add(byte))
        if stream.stopped:
            break
    return [*found, stream.rest()], stream.stopped


@given(st.text(alphabet="abé€😀\ufffd "), st.lists(st.text(alphabet="abé€", min_size=1, max_size=4), max_size=3))
def test_the_pieces_are_the_text_up_to_the_first_stop_string_whatever_the_tokens_are(
    text: str, stops: list[str]
) -> None:
    found, stopped = pieces(text.encode(), stops)
    first = next((n for n in range(len(text) + 1) if any(stop in text[:n] for stop in stops)), len(text))
    assert "".join(found) == cut_at(text[:first], stops)
    assert stopped == any(stop in text for stop in stops)


def test_what_the_next_token_may_change_waits() -> None:
    assert pieces("é!\n\n#".encode(), ["\n\n##"]) == (["", "é", "!", "", "", "", "\n\n#"], False)
    assert pieces(b"a\n\n##b", ["\n\n##"]) == (["a", "", "", "", "", ""], True)


def test_bytes_that_are_no_character_come_at_the_end() -> None:
    assert pieces(b"a\xe2\x82", []) == (["a", "", "", "\ufffd"], False)
