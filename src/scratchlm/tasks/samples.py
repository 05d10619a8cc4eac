"""Text that a model writes while it learns: the curve that a person reads."""

from collections.abc import Mapping
from typing import Any

from scratchlm.data.tokenizer import Tokenizer
from scratchlm.model.generate import generate
from scratchlm.model.gpt import GPTModel
from scratchlm.model.inference import for_inference


class TextSampler:
    """Continues one prompt greedily at each evaluation; `samples` collects the figures and texts."""

    def __init__(self, model: GPTModel, tokenizer: Tokenizer, prompt: str, n_tokens: int) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._prompt, self._n_tokens = prompt, n_tokens
        self.samples: list[dict[str, Any]] = []

    def after(self, figures: Mapping[str, float]) -> Mapping[str, float]:
        """Write a sample beside an evaluation's figures; returns the figures."""
        prompt = self._tokenizer.encode(self._prompt)
        (continued,) = generate(
            for_inference(self._model),
            [prompt],
            max_new_tokens=self._n_tokens,
            end_token_id=self._tokenizer.end_token_id,
        )
        text = self._tokenizer.decode([*prompt, *continued.token_ids])
        self.samples.append({"evaluation": len(self.samples), **figures, "text": text})
        return figures
