"""The folder of a downloaded model: its weights and its vocabulary.

Imports torch and the package gguf only when it needs them: tokenize needs no torch, and preflight imports every stage.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from scratchlm.data.byte_pairs import save_byte_pairs
from scratchlm.formats.huggingface_tokenizer import load_huggingface_tokenizer
from scratchlm.model.config import PRETRAINED
from scratchlm.run.errors import UserError
from scratchlm.run.files import only_file

if TYPE_CHECKING:
    from scratchlm.model.gpt import GPTModel


def load_pretrained(source: Path) -> "GPTModel":
    """Return the model in a folder, in a GGUF file or in the files of Hugging Face.

    source: of Hugging Face's, a folder with the name of the model in PRETRAINED.
    Raises UserError naming the file and what cannot be read, or differs from PRETRAINED.
    """
    if not (source / "config.json").exists():
        from scratchlm.formats.gguf_file import GGUFFile
        from scratchlm.formats.gguf_reader import load_gguf

        return load_gguf(GGUFFile(only_file(source)))
    from scratchlm.formats.huggingface import load_huggingface
    from scratchlm.formats.huggingface_config import read_config

    found = read_config(source)
    for key, value in PRETRAINED[source.name]:
        if getattr(found, key) != value:
            raise UserError(
                f"{source / 'config.json'}: {key} is {getattr(found, key)}, but that of {source.name} is {value}; "
                "fetch the files of that model"
            )
    return load_huggingface(source, len(load_huggingface_tokenizer(source).encoder))


def vocabulary_folder(source: Path, scratch: Path) -> Path:
    """Return a folder with encoder.json and vocab.bpe: `source`, or one made in `scratch` of the files in it.

    Those are a GGUF file, or the tokenizer of Hugging Face.
    """
    folder = scratch / "vocabulary"
    if found := sorted(source.glob("*.gguf")):
        from scratchlm.formats.gguf_file import GGUFFile
        from scratchlm.formats.gguf_tokenizer import read_gguf_tokenizer

        save_byte_pairs(folder, *read_gguf_tokenizer(GGUFFile(found[0])))
    elif (source / "tokenizer.json").exists():
        save_byte_pairs(folder, *load_huggingface_tokenizer(source))
    else:
        return source
    return folder
