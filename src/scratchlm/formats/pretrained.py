"""The folder of a downloaded model: its weights and its vocabulary.

Imports torch and the package gguf only when it needs them: tokenize needs no torch, and preflight imports every stage.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from scratchlm.data.byte_pairs import save_byte_pairs
from scratchlm.run.files import only_file

if TYPE_CHECKING:
    from scratchlm.model.gpt import GPTModel


def load_pretrained(source: Path) -> "GPTModel":
    """Return the model of the GGUF file in a folder. Raises UserError naming the file and what cannot be read."""
    from scratchlm.formats.gguf_file import GGUFFile
    from scratchlm.formats.gguf_reader import load_gguf

    return load_gguf(GGUFFile(only_file(source)))


def vocabulary_folder(source: Path, scratch: Path) -> Path:
    """Return a folder with encoder.json and vocab.bpe: `source`, or one made in `scratch` of the GGUF file in it."""
    found = sorted(source.glob("*.gguf"))
    if not found:
        return source
    from scratchlm.formats.gguf_file import GGUFFile
    from scratchlm.formats.gguf_tokenizer import read_gguf_tokenizer

    folder = scratch / "vocabulary"
    save_byte_pairs(folder, *read_gguf_tokenizer(GGUFFile(found[0])))
    return folder
