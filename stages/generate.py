"""Answer every test instruction with the assistant, and with its base model for comparison."""

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
    run: Run, *, params: Path, tokenizer: Path, instructions: Path, base: Path, assistant: Path, responses: Path,
    metrics: Path,
) -> None:  # fmt: skip
    p = read_params(params, Params)
    set_up(run, p)
    responder = Responder(load_tokenizer(tokenizer), p.generate, run)
    rows = read_splits(instructions, INSTRUCTION_SCHEMA)["test"]
    models = ({"before": base} if p.generate.before else {}) | {"after": assistant}
    arithmetic = describe_arithmetic(run.device)
    run.checkpoint.require(arithmetic["arithmetic"])
    records = run.checkpoint.load_rows(len(rows) * len(models))
    with run.checkpoint.saving_rows(records, RESPONSE_SCHEMA) as save_if_due, run.autocast():
        for name, folder in models.items():
            n_done = sum(record["model"] == name for record in records)
            if n_done < len(rows):
                gpt = load_gpt(folder).to(run.device)
                for batch in responder.responses(gpt, name, rows, n_done):
                    records += batch
                    save_if_due()
    write_table(responses, records, RESPONSE_SCHEMA)
    answers = {name: [record for record in records if record["model"] == name] for name in models}
    counts = {name: response_counts(found, normalise) for name, found in answers.items()}
    write_json(metrics, counts | arithmetic)


if __name__ == "__main__":
    start(main)
