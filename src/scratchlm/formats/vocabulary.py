"""The vocabulary of a downloaded model as a tokenizer's folder. Imports no torch: the stage tokenize needs none."""

from pathlib import Path

from scratchlm.data.byte_pairs import save_byte_pairs
from scratchlm.formats.gguf_file import GGUFFile
from scratchlm.formats.gguf_tokenizer import read_gguf_tokenizer


def vocabulary_folder(source: Path, scratch: Path) -> Path:
    """Return a folder with encoder.json and vocab.bpe: `source`, or one made in `scratch` of the GGUF file in it."""
    found = sorted(source.glob("*.gguf"))
    if not found:
        return source
    folder = scratch / "vocabulary"
    save_byte_pairs(folder, *read_gguf_tokenizer(GGUFFile(found[0])))
    return folder
