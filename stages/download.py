"""Fetch the sources that params.yaml names, verified by hash."""

import os
from pathlib import Path

from scratchlm.data.catalogue import GPT2Size, PretrainedName, SourcesParams, wanted_files
from scratchlm.data.sources import fetch, place
from scratchlm.run.context import Run
from scratchlm.run.files import atomic_folder, sha256_of, write_json
from scratchlm.run.params import Section, read_params
from scratchlm.run.stage import start


class Params(Section):
    sources: SourcesParams
    gpt2_sizes: list[GPT2Size]
    pretrained: list[PretrainedName]


def main(run: Run, *, params: Path, store: Path, raw: Path, metrics: Path) -> None:
    p = read_params(params, Params)
    mirror = os.environ.get("SCRATCHLM_MIRROR")
    wanted = wanted_files(p.sources, p.gpt2_sizes, p.pretrained)
    stored = [(source, file, fetch(source, file, store, mirror)) for source, file in wanted]
    report: dict[str, dict] = {source.name: {"files": 0, "bytes": 0, "sha256": {}} for source, _ in wanted}
    with atomic_folder(raw) as folder:
        for source, file, path in stored:
            place(path, folder / source.name / file.name)
            entry = report[source.name]
            entry["files"] += 1
            entry["bytes"] += path.stat().st_size
            entry["sha256"][file.name] = sha256_of(path)
    write_json(metrics, report)


if __name__ == "__main__":
    start(main)
