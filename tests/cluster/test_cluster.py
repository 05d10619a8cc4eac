"""Workers on two nodes of a Ray cluster on this machine, which have one address; `make cluster-check` runs this."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from tests.processes import wait_for_processes
from tests.unit.tasks.test_batches import result as answers
from tests.unit.tasks.test_batches import stage as answering_stage
from tests.unit.training.test_workers import Stage, result, stage

__all__ = ["answering_stage", "stage"]  # fixtures
LONG = {"epochs": 150.0, "evaluate_every_steps": 10_000}  # takes some seconds


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without CPUs, where the stage runs; a test adds the node of the worker."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "2")  # for a lost head to return: 60 by default
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    monkeypatch.setenv("RAY_ADDRESS", found.address)
    yield found
    found.shutdown()


@pytest.mark.parametrize(("precision", "kind"), [("float32", "windows"), ("exact", "pairs")])
def test_workers_on_nodes_change_no_bit(cluster: Any, stage: Stage, tmp_path: Path, precision: str, kind: str) -> None:
    cluster.add_node(num_cpus=2)
    found = {}
    for n in (1, 2):
        done = stage(str(n), precision=precision, kind=kind)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        found[n] = result(tmp_path)
    assert found[1][0] == found[2][0]
    assert found[2][1]["step"] < found[1][1]["step"]  # the other worker has computed some
    wait_for_processes(0, tmp_path, "tests.unit.training.worker_stage")


def test_answers_of_workers_on_nodes_change_no_bit(cluster: Any, answering_stage: Stage, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=2)
    assert answering_stage(1, "exact").returncode == 0
    alone = answers(tmp_path)
    done = answering_stage(2, "exact", taken=5)  # all but one by the worker
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert answers(tmp_path) == (alone[0], 1)
    wait_for_processes(0, tmp_path, "tests.unit.tasks.answering_stage")
    wait_for_processes(0, tmp_path, "scratchlm.cluster.launch")


@pytest.mark.parametrize("lost", ["node", "launcher", "head"])
def test_what_is_lost_ends_the_stage_with_one_sentence_and_one_process_resumes(
    cluster: Any, stage: Stage, tmp_path: Path, training_values: dict[str, Any], lost: str
) -> None:
    from tests.unit.training.test_workers import CHANGES

    node = cluster.add_node(num_cpus=2)
    training = training_values | CHANGES | LONG
    with ThreadPoolExecutor() as pool:
        running = pool.submit(stage, "2", save=0, training=training)
        wait_for_processes(2, tmp_path, "tests.unit.training.worker_stage --settings")
        (launcher,) = wait_for_processes(1, tmp_path, "scratchlm.cluster.launch")
        deadline = time.monotonic() + 60
        while not [*(tmp_path / "checkpoints").glob("*-*")]:  # one of each step
            assert time.monotonic() < deadline
            time.sleep(0.1)
        if lost == "launcher":
            launcher.kill()
        else:
            cluster.remove_node(node if lost == "node" else cluster.head_node, allow_graceful=False)
        done = running.result()
    assert done.returncode == 1
    sentence = done.stderr.splitlines()[-1]
    assert sentence.startswith("worker_stage: ") and "; run this again to resume" in sentence
    assert "rpc_client.h" not in sentence  # as a line of Ray's own log
    wait_for_processes(0, tmp_path, "tests.unit.training.worker_stage")
    wait_for_processes(0, tmp_path, "scratchlm.cluster.launch")
    done = stage("1", training=training)
    assert "resuming from step" in done.stderr
    resumed = result(tmp_path)[0]
    assert stage("1", training=training).returncode == 0
    assert result(tmp_path)[0] == resumed


def test_too_few_cpus_are_waited_for_and_then_named(
    cluster: Any, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRATCHLM_WORKER_SECONDS", "3")  # less than the user is told after
    waiting, sentence = stage("3").stderr.splitlines()
    assert waiting.startswith("training: waiting for 3 workers of 1 CPUs each on the Ray cluster, which has 1 node")
    assert sentence.startswith("worker_stage: waited 3 seconds (SCRATCHLM_WORKER_SECONDS) for 3 workers")


def test_a_cluster_that_does_not_answer_is_named(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    (sentence,) = stage("2").stderr.splitlines()
    assert sentence.startswith("worker_stage: no Ray cluster answers at 127.0.0.1:9 (Connection refused); ")
    monkeypatch.setenv("RAY_ADDRESS", "ray://127.0.0.1:10001")
    assert "RAY_ADDRESS is 'ray://127.0.0.1:10001', but must be `auto`, or the address" in stage("2").stderr
