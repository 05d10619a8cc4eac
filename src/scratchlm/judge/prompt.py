"""The prompts of a judge that is a language model, its decoding settings, and its reply."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from scratchlm.judge.protocol import MAX_SCORE, Judgement

TEMPLATES = {"anchored": "prompt_anchored.txt", "book": "prompt_book.txt", "pairwise": "prompt_pairwise.txt"}
GREEDY = {"temperature": 0, "top_k": 1, "repeat_penalty": 1.0}
SAMPLED = {"temperature": 0.5, "top_k": 40}
# Of ChatML, Llama, Mistral, Gemma, Phi, DeepSeek and others: the APIs of servers do not list those of their models
CONTROL_TOKENS = re.compile(
    r"<[|｜][^<>\s]{1,60}[|｜]>|</?s>|<(?:bos|eos|pad|unk|start_of_turn|end_of_turn)>|<</?SYS>>"
    r"|\[/?(?:INST|SYSTEM_PROMPT)\]"
)
QUESTION_CUT = "the question does not fit into the context"
REPLY_CUT = "the reply was cut at max_new_tokens"


def _no_truth_value(score: Any) -> Any:
    """Raises ValueError for true and false, which pydantic takes as 1 and 0."""
    if isinstance(score, bool):
        raise ValueError("must be a number")
    return score


class Verdict(BaseModel):  # its docstring is part of the schema that the model is given
    """What the judging model must reply: the reason first, so that the score follows from it."""

    reason: str
    score: Annotated[int, Field(ge=0, le=MAX_SCORE), BeforeValidator(_no_truth_value)]

    @property
    def points(self) -> float:
        return float(self.score)


class Preference(BaseModel):
    """What the judging model must reply about two responses: the reason first, so that the choice follows from it."""

    reason: str
    better: Literal["first", "second", "neither"]

    @property
    def points(self) -> float:
        """MAX_SCORE if the first response is better, 0 if the second is."""
        return {"first": MAX_SCORE, "neither": MAX_SCORE / 2, "second": 0.0}[self.better]


FORMS: dict[str, type[Verdict] | type[Preference]] = {"anchored": Verdict, "pairwise": Preference}


@dataclass(frozen=True)
class Prompt:
    """A template of the question, and the form of its reply.

    system: the system message, or "". question: the user's message with {task} and so on. form: of a reply that is
    JSON, or None for one that is a whole number.
    """

    system: str
    question: str
    form: type[Verdict | Preference] | None

    @property
    def schema(self) -> dict[str, Any] | None:
        return self.form.model_json_schema() if self.form else None

    def messages(
        self, entry: Mapping[str, str], response: str, control_tokens: re.Pattern[str] = CONTROL_TOKENS
    ) -> list[dict[str, str]]:
        """Return the chat that asks for a grade of `response` to `entry` (instruction, input, output).

        For `pairwise`, it asks whether `response` is better than the `rival` in `entry`. control_tokens: those of the
        model, which would end the message that holds them. In every text, "(" replaces their first character.
        """
        parts = {
            "task": "\n".join(part for part in (entry["instruction"], entry["input"]) if part),
            "instruction": entry["instruction"],
            "input": entry["input"] and f"\n\n### Input:\n{entry['input']}",
            "reference": entry["output"],
            "response": response,
            "rival": entry.get("rival", ""),
        }
        asked = self.question.format(**{name: _fenced(text, control_tokens) for name, text in parts.items()})
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": asked}]

    def read(self, text: str, thoughts: str, cut: str) -> Judgement:
        """Return the verdict in a reply, which may follow thoughts. A score of None: it has another form.

        thoughts: kept as the raw reply where there is no text. cut: the reason to give if there is no verdict, or "".
        """
        given = _without_thoughts(text)
        if self.form is None:
            number = int(given) if re.fullmatch("[0-9]{1,3}", given) else MAX_SCORE + 1
            return Judgement(float(number), "", text) if number <= MAX_SCORE else Judgement(None, cut, text or thoughts)
        try:
            verdict = self.form.model_validate_json(given)
        except ValidationError:
            return Judgement(None, cut, text or thoughts)
        return Judgement(float(verdict.points), verdict.reason, text)

    @property
    def sha256(self) -> str:
        """A hash of template and schema: scores under different prompts are not comparable."""
        prompt = self.system + self.question + json.dumps(self.schema, sort_keys=True)
        return hashlib.sha256(prompt.encode()).hexdigest()


def load_prompt(name: str) -> Prompt:
    """Return a template of TEMPLATES: a system message and a question, with a line of three hyphens between them."""
    text = Path(__file__).with_name(TEMPLATES[name]).read_text(encoding="utf-8").removesuffix("\n")
    system, _, question = text.partition("---\n")
    return Prompt(system.removesuffix("\n"), question, FORMS.get(name))


def decoding(seed: int, draw: int) -> dict[str, Any]:
    """Return the decoding settings: draw 0 is greedy, later ones are sampled, each with another seed."""
    return GREEDY | {"seed": seed + draw} | (SAMPLED if draw else {})


def _fenced(text: str, control_tokens: re.Pattern[str]) -> str:
    """Replace the `<` of every tag of ours, too. Removing characters instead could join others into a tag."""
    text = control_tokens.sub(lambda found: f"({found[0][1:]}", text)
    return re.sub(r"<(?=\s*/?\s*(task|reference|response|first|second)\b)", "(", text, flags=re.IGNORECASE)


def _without_thoughts(reply: str) -> str:
    """Return the reply without the thoughts before it, whose first tag may be in the prompt, and without a fence."""
    text = reply.strip()
    if not text.startswith("{"):
        text = text.rpartition("</think>")[2].strip()
    return re.sub(r"\A```(?:json)?\s*(.*?)\s*```\Z", r"\1", text, flags=re.DOTALL)
