"""Random sequences of what a user does in one workspace; `make soak`:

python -m tests.pipeline.soak --examples 3 --steps 20

Edits, kills, lost files, branch switches and builds follow each other. After each build that ends, dvc.lock and every
metric have the bytes of an undisturbed build of the same parameters elsewhere. No command ends in a traceback, and the
user's own files stay. Hypothesis shortens a sequence that fails; each is printed as a program.
"""

import argparse
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests.clones import FEW_STEPS, IDENTITY, commit, environment, make_clone, results, run, set_parameter
from tests.pipeline.kills import HOWS, Clone, kill

# Each changes what few stages compute, so that a build takes seconds
VALUES = {"finetune_spam.epochs": (0.2, 0.4), "judge.controls": (1, 3), "generate.max_new_tokens": (4, 5)}
QUESTIONS = (["status"], ["results"], ["compare", "HEAD"], ["verify"], ["repair"])
NOTES = "mine, and tracked by nobody\n"
Parameters = tuple[tuple[str, object], ...]


class Elsewhere:
    """A clone that nobody disturbs. Knows the results of each set of parameters."""

    def __init__(self, path: Path) -> None:
        self.path = make_clone(path, FEW_STEPS | {key: values[0] for key, values in VALUES.items()})
        self._results: dict[Parameters, dict[str, bytes]] = {}
        run(self.path, "git", "switch", "-qC", "main")
        self.build({key: values[0] for key, values in VALUES.items()})
        commit(self.path, "Build")

    def build(self, parameters: dict[str, object]) -> dict[str, bytes]:
        key = tuple(sorted(parameters.items()))
        if key not in self._results:
            for name, value in parameters.items():
                set_parameter(self.path, name, value)
            run(self.path, "dvc", "repro")
            self._results[key] = results(self.path)
        return self._results[key]


def machine(elsewhere: Elsewhere, start: Path, seconds: float) -> type[RuleBasedStateMachine]:
    """The state machine. start: a copy of the built clone; seconds: the longest time from a start to a kill."""

    class Workspace(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.folder = Path(tempfile.mkdtemp(prefix="scratchlm-soak-", dir=start.parent))
            shutil.copytree(start, self.folder / "clone", symlinks=True)
            self.clone = Clone(self.folder)
            self.path = self.clone.path
            self.notes = [self.path / "notes.md", self.path / "data" / "notes.md"]
            for path in self.notes:
                path.write_text(NOTES)
            self.committed = {"main": {key: values[0] for key, values in VALUES.items()}}
            self.branch, self.parameters, self.built = "main", dict(self.committed["main"]), True

        @invariant()
        def notes_stay(self) -> None:
            assert [path.read_text() for path in self.notes] == [NOTES] * len(self.notes)

        def teardown(self) -> None:
            shutil.rmtree(self.folder)

        @rule(change=st.sampled_from([(key, value) for key, values in VALUES.items() for value in values]))
        def edit(self, change: tuple[str, object]) -> None:
            self.built = self.built and self.parameters[change[0]] == change[1]
            self.parameters[change[0]] = change[1]
            set_parameter(self.path, *change)

        @rule()
        def build(self) -> None:
            run(self.path, "scratchlm", "repair")
            run(self.path, "dvc", "repro", **self.clone.variables)
            found = results(self.path)
            expected = elsewhere.build(self.parameters)
            other = [name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)]
            assert other == [], other
            self.built = True

        @rule(how=st.sampled_from(HOWS), share=st.floats(0, 1))
        def build_and_kill(self, how: str, share: float) -> None:
            self.built = False
            dvc = self.clone.start()
            try:
                dvc.wait(share * seconds)
            except subprocess.TimeoutExpired:
                kill(self.clone, dvc, how)

        @rule(share=st.floats(0, 1))
        def build_and_interrupt(self, share: float) -> None:
            self.built = False
            dvc = self.clone.start()
            try:
                dvc.wait(share * seconds)
            except subprocess.TimeoutExpired:
                for process in self.clone.processes():
                    process.send_signal(signal.SIGINT)
                dvc.wait(60)

        @rule(
            place=st.sampled_from(["data/*/*", "data/*/*/*", "metrics/*.json", ".scratchlm/resume/*"]), n=st.integers(0)
        )
        def lose_a_file(self, place: str, n: int) -> None:
            """A file that a stage wrote and that DVC or git can restore or a stage can make again."""
            files = [
                path
                for path in sorted(self.path.glob(place))
                if "sample" not in path.parts and path.is_file() and path not in self.notes
            ]
            if files:
                files[n % len(files)].unlink()
                self.built = False

        @precondition(lambda self: self.built)
        @rule()
        def commit_what_was_built(self) -> None:
            run(self.path, "git", "add", "-u")
            run(self.path, "git", *IDENTITY, "commit", "-qm", "Build", "--allow-empty")
            self.committed[self.branch] = dict(self.parameters)

        @rule(name=st.sampled_from(["main", "one", "two"]))
        def switch(self, name: str) -> None:
            """Throw uncommitted changes away and switch, to a new branch if there is none of this name."""
            run(self.path, "git", "reset", "-q", "--hard")
            self.parameters = dict(self.committed[self.branch])
            if name not in self.committed:
                run(self.path, "git", "switch", "-qc", name)
                self.committed[name] = dict(self.parameters)
            run(self.path, "git", "switch", "-q", name)
            self.branch, self.parameters, self.built = name, dict(self.committed[name]), False

        @rule(words=st.sampled_from(QUESTIONS))
        def ask(self, words: list[str]) -> None:
            done = subprocess.run(
                ["scratchlm", *words], cwd=self.path, env=environment(self.path), capture_output=True, text=True
            )
            said = done.stdout + done.stderr
            assert done.returncode in (0, 1), said[-3000:]
            assert "Traceback" not in said, said[-3000:]
            assert "defect of scratchlm" not in said, said[-3000:]

    return Workspace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=15.0, help="the longest time from a start to a kill")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="scratchlm-soak-") as folder:
        elsewhere = Elsewhere(Path(folder) / "elsewhere")
        start = shutil.copytree(elsewhere.path, Path(folder) / "start", symlinks=True)
        run_state_machine_as_test(
            machine(elsewhere, start, options.seconds),
            settings=settings(
                max_examples=options.examples,
                stateful_step_count=options.steps,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
                report_multiple_bugs=False,
            ),
        )
    print(f"{options.examples} sequences of at most {options.steps} steps: every build has the expected bytes")


if __name__ == "__main__":
    main()
