"""Fetch the sources that params.yaml names, verified by hash."""

import os
from pathlib import Path
from typing import Any

from scratchlm.data.catalogue import GPT2Size, PretrainedName, Source, SourcesParams, wanted_files
from scratchlm.data.manifest import copy_manifest, read_manifest
from scratchlm.data.own_data import FOLDER, write_own
from scratchlm.data.sources import fetch, own_paths, place
from scratchlm.run.context import Run
from scratchlm.run.files import atomic_folder, sha256_of, write_json
from scratchlm.run.params import Section, read_params
from scratchlm.run.stage import start


class Params(Section):
    sources: SourcesParams
    gpt2_sizes: list[GPT2Size]
    pretrained: list[PretrainedName]


def main(run: Run, *, params: Path, store: Path, raw: Path, sources: Path) -> None:
    p = read_params(params, Params)
    mirror = os.environ.get("SCRATCHLM_MIRROR")
    own = {purpose: own_paths(purpose, source, store, mirror) for purpose, source in p.sources.own.items()}
    wanted = wanted_files(p.sources, p.gpt2_sizes, p.pretrained)
    stored = [(source, file, fetch(source, file, store, mirror)) for source, file in wanted]
    report: dict[str, dict[str, Any]] = {}
    with atomic_folder(raw) as folder:
        for source, file, path in stored:
            place(path, folder / (source.purpose or source.name) / file.name)
            record(report, source, file.name, path)
        for purpose, paths in own.items():
            (folder / purpose).mkdir(parents=True)
            write_own(purpose, p.sources.own[purpose], paths, folder / purpose)
            for path in paths:
                name = path.relative_to(FOLDER).as_posix() if path.is_relative_to(FOLDER) else path.name
                record(report, p.sources.source(purpose), name, path)
        if p.sources.pinned:
            path = Path(p.sources.pinned.manifest)
            files = read_manifest(path)
            copy_manifest(path, folder / "corpus")
            n_bytes, name = sum(file.size_bytes for file in files), p.sources.source("corpus").name
            report[name] = {"files": len(files), "bytes": n_bytes, "sha256": {path.name: sha256_of(path)}}
    write_json(sources, report)


def record(report: dict[str, dict[str, Any]], source: Source, name: str, path: Path) -> None:
    """Add a file to what the report says of its source."""
    entry = report.setdefault(source.name, {"files": 0, "bytes": 0, "sha256": {}})
    entry["files"] += 1
    entry["bytes"] += path.stat().st_size
    entry["sha256"][name] = sha256_of(path)


if __name__ == "__main__":
    start(main)
