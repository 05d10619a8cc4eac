"""The places of a stage's workers; tests/unit/training/test_workers.py and tests/cluster start real ones."""

from pathlib import Path

from scratchlm.run.workers import ClusterWorkers, WorkerProcesses


def test_workers_on_this_machine_share_its_threads_and_those_on_a_cluster_do_not(tmp_path: Path) -> None:
    assert WorkerProcesses(4, 16, True, tmp_path).place(0).threads == 4
    assert WorkerProcesses(4, 16, False, tmp_path).place(0).threads == 16
    assert ClusterWorkers(4, 16, True, tmp_path).place(0).threads == 16
