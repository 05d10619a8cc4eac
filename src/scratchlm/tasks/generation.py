"""The answers that a model writes to instructions."""

import hashlib
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import Field

from scratchlm.arithmetic.fingerprint import arithmetic_fingerprint
from scratchlm.arithmetic.random import stream
from scratchlm.data.tokenizer import Tokenizer
from scratchlm.fast.decoding import for_inference
from scratchlm.model.generate import Generation, SamplingParams, Stopping, cut_at, generate, stop_at
from scratchlm.model.gpt import GPTModel
from scratchlm.run.context import Run
from scratchlm.run.params import Section
from scratchlm.tasks.batches import Batches, results

RESPONSE_SCHEMA = pa.schema(
    dict.fromkeys(("id", "model", "instruction", "input", "output", "response"), pa.string()) | {"finished": pa.bool_()}
)

N_SAMPLES = 3  # responses that are shown at each evaluation of a training

Rows = Sequence[dict[str, Any]]  # with id, instruction, input, output, prompt_token_ids, response_token_ids
Answers = Generator[list[dict[str, Any]], None, None]


class GenerateParams(Section):
    """split: of the instructions, which are answered. stop: texts that end a response too, not part of it."""

    split: Literal["val", "test"]
    batch_size: Annotated[int, Field(ge=1)]
    max_new_tokens: Annotated[int, Field(ge=1)]
    stop: list[Annotated[str, Field(min_length=1)]]
    sampling: SamplingParams


class Responder:
    """Answers instructions as params.yaml says; a row's draws depend on its own id only."""

    def __init__(self, tokenizer: Tokenizer, params: GenerateParams, run: Run) -> None:
        self._tokenizer, self._params, self._run = tokenizer, params, run

    def responses(self, model: GPTModel, name: str, rows: Rows, n_done: int = 0) -> Answers:
        """One record of RESPONSE_SCHEMA per row, under the model's `name`, a batch at a time.

        n_done: rows, whole batches of them, that are skipped because they have been answered. Several processes may
        answer (see batches.py); close this to end them. Raises UserError if one of them has ended.
        """
        decoder, params = for_inference(model), self._params
        size = params.batch_size

        def answered(number: int) -> list[dict[str, Any]]:
            batch = rows[number * size : (number + 1) * size]
            is_complete = stop_at([params.stop] * len(batch), self._tokenizer.decode) if params.stop else None
            found = generate(
                decoder,
                [row["prompt_token_ids"] for row in batch],
                Stopping(params.max_new_tokens, self._tokenizer.end_token_id, is_complete),
                params.sampling,
                seeds=[stream(self._run.seed, f"sampling {row['id']}") for row in batch],
            )
            records = response_records(batch, found, self._tokenizer, params.stop)
            return [{"model": name, **record} for record in records]

        numbers = range(n_done // size, math.ceil(len(rows) / size))
        batches = Batches(numbers, answered, lambda: self._digest(model, rows))
        with (
            self._run.progress(len(rows), n_done, "response") as bar,
            closing(results(batches, self._run, f"generate.batch_size {size}")) as answers,
        ):
            for records in answers:
                yield records
                bar.update(len(records))

    def _digest(self, model: GPTModel, rows: Rows) -> str:
        """A hash of what the responses depend on."""
        run = self._run
        values = [self._params.model_dump_json(), run.seed, run.precision, arithmetic_fingerprint(run.device), rows]
        found = hashlib.sha256(repr(values).encode())
        for weight in model.state_dict().values():
            found.update(weight.numpy())
        return found.hexdigest()


def response_counts(records: Sequence[Mapping[str, Any]], normalise: Callable[[str], str]) -> dict[str, Any]:
    """Responses, how many ended by themselves, and how many equal the reference answer when both are normalised."""
    return {
        "responses": len(records),
        "finished": sum(record["finished"] for record in records),
        "exact_matches": sum(normalise(record["response"]) == normalise(record["output"]) for record in records),
    }


def response_records(
    rows: Rows, answers: Sequence[Generation], tokenizer: Tokenizer, stop: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Each row's question, reference answer and response, up to what stopped it, without surrounding white space."""
    return [
        {field: row[field] for field in ("id", "instruction", "input", "output")}
        | {"response": cut_at(tokenizer.decode(answer.token_ids), stop).strip(), "finished": answer.finished}
        for row, answer in zip(rows, answers, strict=True)
    ]
