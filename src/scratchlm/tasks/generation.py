"""The answers that a model writes to instructions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field
from tqdm import tqdm

from scratchlm.data.tokenizer import Tokenizer
from scratchlm.model.generate import Generation, SamplingParams, cut_at, generate, stop_at
from scratchlm.model.gpt import GPTModel
from scratchlm.model.inference import for_inference
from scratchlm.run.device import stream
from scratchlm.run.params import Section

RESPONSE_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "model", "instruction", "input", "output", "response")),
        ("finished", pa.bool_()),
    ]
)

Rows = Sequence[dict[str, Any]]  # with id, instruction, input, output, prompt_token_ids, response_token_ids


class GenerateParams(Section):
    """before: also answer with the base model, to see what finetuning changed.

    stop: texts that end a response besides the end token, and are not part of it.
    """

    before: bool
    batch_size: Annotated[int, Field(ge=1)]
    max_new_tokens: Annotated[int, Field(ge=1)]
    stop: list[Annotated[str, Field(min_length=1)]]
    sampling: SamplingParams


def generate_responses(
    model: GPTModel, rows: Rows, tokenizer: Tokenizer, params: GenerateParams, seed: int, name: str, n_done: int = 0
) -> Iterator[list[dict[str, Any]]]:
    """One record of RESPONSE_SCHEMA per row, under the model's `name`, a batch at a time.

    A row's draws depend on its own id only. n_done: rows, whole batches of them, that are left out.
    """
    decoder = for_inference(model)
    with tqdm(total=len(rows), initial=n_done, desc=f"generate {name}", unit="response") as bar:
        for start in range(n_done, len(rows), params.batch_size):
            batch = rows[start : start + params.batch_size]
            found = generate(
                decoder,
                [row["prompt_token_ids"] for row in batch],
                max_new_tokens=params.max_new_tokens,
                end_token_id=tokenizer.end_token_id,
                sampling=params.sampling,
                seeds=[stream(seed, f"sampling {row['id']}") for row in batch],
                is_complete=stop_at([params.stop] * len(batch), tokenizer.decode) if params.stop else None,
            )
            answers = zip(batch, found, strict=True)
            yield [{"model": name, **response_record(row, answer, tokenizer, params.stop)} for row, answer in answers]
            bar.update(len(batch))


def response_counts(records: Sequence[Mapping[str, Any]], normalise: Callable[[str], str]) -> dict[str, Any]:
    """Responses, how many ended by themselves, and how many equal the reference answer when both are normalised."""
    return {
        "responses": len(records),
        "finished": sum(record["finished"] for record in records),
        "exact_matches": sum(normalise(record["response"]) == normalise(record["output"]) for record in records),
    }


def response_record(
    row: dict[str, Any], answer: Generation, tokenizer: Tokenizer, stop: Sequence[str] = ()
) -> dict[str, Any]:
    """A row's question, reference answer and response, up to what stopped it, without surrounding white space."""
    asked = {field: row[field] for field in ("id", "instruction", "input", "output")}
    text = cut_at(tokenizer.decode(answer.token_ids), stop).strip()
    return asked | {"response": text, "finished": answer.finished}
