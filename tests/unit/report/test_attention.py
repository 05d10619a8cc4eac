"""The page of a model's attention."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from scratchlm.report.attention import attention_page

TOKENS = ["<b>", " red", "\n", " ", " & ", "\u202e", "encyclopaedia", "é"]
LABELS = ["<b>", "red", "\\n", "␣", "&", "\\u202e", "encyclopaed…", "é"]


class Page(HTMLParser):
    """The tags of a page with their attributes, and the text of each."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = [("", {})]
        self.texts: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.texts.append((self.tags[-1][0], data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def uniform() -> np.ndarray:
    """Weights of 2 layers and 3 heads where each position reads all before it equally; one head reads the first."""
    weights = np.tril(np.ones((2, 3, 8, 8))) / np.arange(1, 9)[:, None]
    weights[1, 2] = np.eye(8)[[0] * 8]
    return weights


def test_every_token_is_on_both_axes_and_is_text() -> None:
    page = Page(attention_page("pretrain & co", TOKENS, uniform()))
    shown = [text for tag, text in page.texts if tag == "text" and text.strip()]
    assert shown == [label for _ in range(6) for token in LABELS for label in (token, token)]
    assert not page.all("b") and not page.all("script")
    assert ("h1", "Attention of pretrain & co") in page.texts


def test_the_grid_leads_to_a_map_of_every_head_and_the_first_is_shown() -> None:
    page = Page(attention_page("pretrain", TOKENS, uniform()))
    names = [f"layer-{layer}-head-{head}" for layer in (1, 2) for head in (1, 2, 3)]
    assert [link["href"] for link in page.all("a")] == [f"#{name}" for name in names]
    maps = {str(found["id"]): found["class"] for found in page.all("section") if "id" in found}
    assert sorted(maps) == names
    assert [name for name, kind in maps.items() if kind == "map default"] == ["layer-1-head-1"] == [*maps][-1:]
    small = dict(zip(names, (found["src"] for found in page.all("img")), strict=True))
    assert dict(zip(maps, (found["href"] for found in page.all("image")), strict=True)) == small
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(str(small["layer-2-head-3"]).partition(",")[2]))))
    assert pixels[..., 3].tolist() == [[255] + [0] * 7] * 8
    uniform_row = np.array(Image.open(io.BytesIO(base64.b64decode(str(small["layer-1-head-1"]).partition(",")[2]))))
    assert uniform_row[3, :, 3].tolist() == [128] * 4 + [0] * 4  # the square root of a quarter


def test_the_page_loads_nothing_and_has_the_reports_style() -> None:
    text = attention_page("pretrain", TOKENS, uniform())
    page = Page(text)
    assert "prefers-color-scheme: dark" in text and "var(--ink)" in text
    addresses = [value for _, found in page.tags for name, value in found.items() if name in ("src", "href")]
    assert all(str(address).startswith(("#", "data:image/png;base64,")) for address in addresses)
    assert not re.search(r"https?://|@import|url\(", text)
    rows = re.findall(r"<tr><th>␣</th><td>(.*?)</td>", text)
    assert re.sub("<.*?>", "", rows[-1]) == "&lt;b&gt; 0.25, red 0.25, \\n 0.25"
