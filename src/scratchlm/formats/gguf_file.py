"""A GGUF file, opened and checked. Imports no torch: a tokenizer can be read without it."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from scratchlm.run.files import damaged, missing

# tokenizer.ggml.pre of our patterns, with the model gpt2. Source: llama.cpp, src/llama-vocab.cpp
PRE_TOKENIZERS = {"gpt2": "gpt-2", "smollm": "smollm", "llama3": "llama-bpe", "qwen2": "qwen2"}


class GGUFFile(gguf.GGUFReader):
    """A GGUF file. Raises UserError naming the file if it is missing, damaged or of another kind."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            super().__init__(path)
            self.values = {name: field.contents() for name, field in self.fields.items()}
        except (FileNotFoundError, NotADirectoryError):
            raise missing(path) from None
        # What the package raises for bytes that it did not expect
        except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, RecursionError) as error:
            raise damaged(path, f"not a whole GGUF file ({error})") from None

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        """Else a damaged length would read nothing after the end, as often as it says."""
        if offset + count * np.dtype(dtype).itemsize > len(self.data):
            raise ValueError("it ends too early")
        return super()._get(offset, dtype, count, override_order)
