from pathlib import Path

import pytest

from scratchlm.compare.git import run_each

FINE, WRONG = ["--version"], ["no-such-command"]


def folders(parent: Path, n: int) -> list[Path]:
    found = [parent / str(number) for number in range(n)]
    for folder in found:
        folder.mkdir()
    return found


def test_each_command_runs_in_a_clone_and_its_lines_say_which_it_is(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    clones = folders(tmp_path, 2)
    ended = list(run_each(clones, "seed", {5: FINE, 6: FINE, 7: FINE}))
    numbers, used, statuses = zip(*ended, strict=True)
    assert (sorted(numbers), {*used}, {*statuses}) == ([5, 6, 7], {*clones}, {0})
    lines = capfd.readouterr().err.splitlines()
    assert sorted(line.partition(": ")[0] for line in lines) == ["seed 5", "seed 6", "seed 7"]


@pytest.mark.long
def test_after_a_failure_none_is_started_and_those_beside_it_end(tmp_path: Path) -> None:
    (only,) = folders(tmp_path, 1)
    one_by_one = [(number, not status) for number, _, status in run_each([only], "seed", {1: FINE, 2: WRONG, 3: FINE})]
    assert one_by_one == [(1, True), (2, False)]
    at_once = {number: not status for number, _, status in run_each([only, tmp_path], "seed", {1: WRONG, 2: FINE})}
    assert at_once == {1: False, 2: True}
