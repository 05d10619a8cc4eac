"""Write for each stage the files of this project that it runs, and the packages with their versions."""

from pathlib import Path

from scratchlm.run.code import stage_code, stage_scripts
from scratchlm.run.context import Run
from scratchlm.run.files import atomic_folder, write_json
from scratchlm.run.stage import start


def main(run: Run, *, stages: Path, library: Path, lock: Path, output: Path) -> None:
    with atomic_folder(output) as folder:
        for script in stage_scripts(stages):
            write_json(folder / f"{script.stem}.json", stage_code(script, library, lock))


if __name__ == "__main__":
    start(main)
