"""Write for each stage the files of this project that it runs, and the packages with their versions."""

import sys
from pathlib import Path

try:
    from scratchlm.run.code import stage_code, stage_scripts
    from scratchlm.run.context import Run
    from scratchlm.run.files import atomic_folder, write_json
    from scratchlm.run.stage import start
except ModuleNotFoundError as error:  # the first stage of all: `dvc repro` was called outside the environment
    sys.exit(f"code: {sys.executable} has no package {error.name}; activate this project's environment, see README.md")


def main(run: Run, *, stages: Path, library: Path, lock: Path, output: Path) -> None:
    with atomic_folder(output) as folder:
        for script in stage_scripts(stages):
            write_json(folder / f"{script.stem}.json", stage_code(script, library, lock))


if __name__ == "__main__":
    start(main)
