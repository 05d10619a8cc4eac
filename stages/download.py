"""Fetch the sources that params.yaml names, verified by hash."""

import os
from pathlib import Path

from scratchlm.data.catalogue import GPT2Size, SourcesParams, wanted_files
from scratchlm.data.sources import fetch, place
from scratchlm.run.files import sha256_of, whole_folder, write_json
from scratchlm.run.params import Section, read_params
from scratchlm.run.stage import run


class Params(Section):
    sources: SourcesParams
    gpt2_sizes: list[GPT2Size]


def main(params: Path, store: Path, raw: Path, metrics: Path) -> None:
    p = read_params(params, Params)
    mirror = os.environ.get("SCRATCHLM_MIRROR")
    wanted = wanted_files(p.sources, p.gpt2_sizes)
    stored = [(source, file, fetch(source, file, store, mirror)) for source, file in wanted]
    report: dict[str, dict] = {source.name: {"files": 0, "bytes": 0, "sha256": {}} for source, _ in wanted}
    with whole_folder(raw) as folder:
        for source, file, path in stored:
            place(path, folder / source.name / file.name)
            entry = report[source.name]
            entry["files"] += 1
            entry["bytes"] += path.stat().st_size
            entry["sha256"][file.name] = sha256_of(path)
    write_json(metrics, report)


if __name__ == "__main__":
    run(main)
