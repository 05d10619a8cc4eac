"""Answer every test instruction with the assistant, and with its base model for comparison."""

from pathlib import Path

from scratchlm.arithmetic.fingerprint import arithmetic_fingerprint
from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.formats.native import load_gpt
from scratchlm.judge.overlap import normalise
from scratchlm.run.device import RuntimeParams, autocast, set_up
from scratchlm.run.files import read_splits, write_json, write_table
from scratchlm.run.params import read_params
from scratchlm.run.resume import Resume
from scratchlm.run.stage import run
from scratchlm.tasks.generation import RESPONSE_SCHEMA, GenerateParams, generate_responses, response_counts


class Params(RuntimeParams):
    generate: GenerateParams


def main(
    params: Path, tokenizer: Path, instructions: Path, base: Path, assistant: Path, responses: Path, metrics: Path,
    resume: Resume,
) -> None:  # fmt: skip
    p = read_params(params, Params)
    device = set_up(p)
    text = load_tokenizer(tokenizer)
    rows = read_splits(instructions)["test"]
    models = ({"before": base} if p.generate.before else {}) | {"after": assistant}
    resume.only_under(arithmetic_fingerprint(device))
    records = resume.records(len(rows) * len(models))
    with resume.keeping_records(records, RESPONSE_SCHEMA) as keep_if_due, autocast(p, device):
        for name, folder in models.items():
            n_done = sum(record["model"] == name for record in records)
            if n_done < len(rows):
                gpt = load_gpt(folder).to(device)
                for batch in generate_responses(gpt, rows, text, p.generate, p.seed, name, n_done):
                    records += batch
                    keep_if_due()
    write_table(responses, records, RESPONSE_SCHEMA)
    write_json(
        metrics,
        {
            name: response_counts([record for record in records if record["model"] == name], normalise)
            for name in models
        },
    )


if __name__ == "__main__":
    run(main)
