"""The attention of a model for one text, as one HTML page that loads nothing and needs no JavaScript."""

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup
from PIL import Image

from scratchlm.report.template import read_template
from scratchlm.run.display import one_line, printable, shortened

TEMPLATE, *STYLES = (Path(__file__).with_name(name) for name in ("attention.html.jinja", "palette.css", "page.css"))
COLOUR = (47, 143, 211)  # visible on the page's light and its dark background
LEGEND = (0.01, 0.05, 0.2, 0.5, 1.0)
LIKELY = 3  # tokens that the table shows of each row
LABEL_CHARACTERS = 12


def attention_page(title: str, tokens: Sequence[str], weights: np.ndarray) -> str:
    """Return the page. title: the model's name. tokens: T pieces of the text. weights: (L, H, T, T) in [0, 1]."""
    labels = [shortened(one_line(token).strip() or "\N{OPEN BOX}", LABEL_CHARACTERS) for token in tokens]
    heads = [
        {"layer": layer, "head": head, "image": _image(map), "rows": [_most(row, labels) for row in map]}
        for layer, maps in enumerate(weights, 1)
        for head, map in enumerate(maps, 1)
    ]
    page = read_template(TEMPLATE, {}).render(
        style=Markup("".join(path.read_text(encoding="utf-8") for path in STYLES)),  # noqa: S704
        title=title,
        text="".join(tokens),
        labels=labels,
        heads=heads,
        n_heads=weights.shape[1],
        legend=[(weight, math.sqrt(weight)) for weight in LEGEND],
        colour=COLOUR,
    )
    return printable(page.strip()) + "\n"


def _most(row: np.ndarray, labels: Sequence[str]) -> list[tuple[str, str]]:
    """Return the tokens with the largest weights of a row, each with its weight."""
    chosen = np.argsort(-row, kind="stable")[:LIKELY]
    return [(labels[i], f"{row[i]:.2f}") for i in chosen if row[i] > 0]


def _image(map: np.ndarray) -> str:
    """Return a data URL of a PNG with a pixel per weight, whose opacity is the weight's square root."""
    pixels = np.empty((*map.shape, 4), np.uint8)
    pixels[..., :3], pixels[..., 3] = COLOUR, np.rint(np.sqrt(map) * 255)
    file = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
