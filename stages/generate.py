"""Answer every test instruction with the assistant, and with its base model for comparison."""

from pathlib import Path

from scratchlm.artifacts import read_splits, write_json, write_table
from scratchlm.checkpoints.native import load_gpt
from scratchlm.data.tokenizer import load_tokenizer
from scratchlm.entry import run
from scratchlm.evaluation.generation import RESPONSE_SCHEMA, GenerateParams, generate_responses, response_counts
from scratchlm.evaluation.overlap import normalise
from scratchlm.params import read_params
from scratchlm.runtime import RuntimeParams, autocast, set_up


class Params(RuntimeParams):
    generate: GenerateParams


def main(
    params: Path, tokenizer: Path, instructions: Path, base: Path, assistant: Path, responses: Path, metrics: Path
) -> None:
    p = read_params(params, Params)
    device = set_up(p)
    text = load_tokenizer(tokenizer)
    rows = read_splits(instructions)["test"]
    records, counts = [], {}
    for name, folder in {"before": base, "after": assistant}.items():
        if name == "after" or p.generate.before:
            with autocast(p, device):
                found = generate_responses(load_gpt(folder).to(device), rows, text, p.generate, p.seed, name)
            records += found
            counts[name] = response_counts(found, normalise)
    write_table(responses, records, RESPONSE_SCHEMA)
    write_json(metrics, counts)


if __name__ == "__main__":
    run(main)
