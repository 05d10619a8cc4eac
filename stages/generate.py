"""Answer every instruction of a split with one variant of the assistant."""

from contextlib import closing
from pathlib import Path

from scratchlm.arithmetic.fingerprint import describe_arithmetic
from scratchlm.data.instructions import INSTRUCTION_SCHEMA
from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.fast.kernels import set_up
from scratchlm.formats.native import load_gpt
from scratchlm.judge.overlap import normalise
from scratchlm.run.context import Run
from scratchlm.run.device import RuntimeParams
from scratchlm.run.files import read_splits, write_json, write_table
from scratchlm.run.params import read_params
from scratchlm.run.stage import start
from scratchlm.tasks.generation import RESPONSE_SCHEMA, GenerateParams, Responder, response_counts


class Params(RuntimeParams):
    generate: GenerateParams


def main(
    run: Run, *, params: Path, tokenizer: Path, instructions: Path, model: Path, responses: Path, metrics: Path
) -> None:
    p = read_params(params, Params)
    set_up(run, p)
    responder = Responder(load_tokenizer(tokenizer), p.generate, run)
    rows = read_splits(instructions, INSTRUCTION_SCHEMA)[p.generate.split]
    arithmetic = describe_arithmetic(run.device)
    run.checkpoint.require(arithmetic["arithmetic"])
    records = run.checkpoint.load_rows(len(rows))
    with run.checkpoint.saving_rows(records, RESPONSE_SCHEMA) as save_if_due, run.autocast():
        if len(records) < len(rows):
            gpt = load_gpt(model).to(run.device)
            with closing(responder.responses(gpt, responses.stem, rows, len(records))) as batches:
                for batch in batches:
                    records += batch
                    save_if_due()
    write_table(responses, records, RESPONSE_SCHEMA)
    write_json(metrics, response_counts(records, normalise) | arithmetic)


if __name__ == "__main__":
    start(main, "responses", "finished", "exact_matches")
