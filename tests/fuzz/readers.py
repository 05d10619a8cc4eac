"""Coverage-guided fuzzing of everything that reads bytes from outside; tests/README.md says how to run it.

Each target replaces one file of a small sound folder by the fuzzer's bytes and reads the folder. A reader may return
or raise a UserError; anything else is a finding. Findings are written to FOLDER/findings, one per kind of exception
and place, and the run continues, so that one fault does not hide the others.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["scratchlm", "json", "zipfile", "csv", "yaml", "requests.utils"]):
    from scratchlm.run.errors import UserError
    from tests.fuzz.targets import make_folder
from tests.fuzz.findings import Findings, place

LARGEST_BYTES = 20_000  # a fuzzer learns little from more


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("folder", type=Path, help="for the corpus and the findings")
    own, options = parser.parse_known_args()
    scratch = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    targets = make_folder(scratch)
    if own.target == "list":
        print(*targets)
        shutil.rmtree(scratch)
        return
    target, findings = targets[own.target], Findings(own.folder / "findings")
    corpus = own.folder / "corpus" / own.target
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)

    def read(data: bytes) -> None:
        (scratch / target.file).write_bytes(data)
        try:
            target.read(scratch)
        except UserError:
            return
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - a panic of Rust is no Exception
            findings.add(f"{own.target}-{place(error)}", data, str(error))

    atheris.Setup([sys.argv[0], *options, f"-max_len={LARGEST_BYTES}", str(corpus)], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
