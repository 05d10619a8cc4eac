"""Kill builds on two Ray nodes of this machine, with another number of workers after each kill:

python -m tests.cluster.kills --kills 10    # the seed is printed; `make cluster` installs what this needs

A worker, the stage's own process, DVC, a node or the cluster's head is killed at a random moment of builds with short
trainings. Each build must end with the bytes of one undisturbed process; then it is added to tests/cluster/kills.json.
"""

import argparse
import os
import random
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from tests.clones import make_clone
from tests.pipeline.kills import SOME_STEPS, Clone, add_up, torture, working_folder

NODE_CPUS = 2
MOST_WORKERS = 3  # of one thread and half a GB each
LOST_SECONDS = 10.0  # from the end of a node to that of its workers
LONGEST_SECONDS = 20.0  # from a start to its kill; the workers of a stage take some seconds to start
RAY_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "2",  # for a lost head to return: 60 by default
}
STEPS = SOME_STEPS | {"pretrain.epochs": 0.6} | {
    f"{stage}.max_micro_batch_size": size
    for stage, size in {
        "pretrain": 4, "finetune_spam": 4, "finetune_instruct": 4, "finetune_preference": 2, "reward_model": 2,
    }.items()
}  # fmt: skip
TALLY = Path(__file__).with_suffix(".json")


class ClusterClone(Clone):
    """A clone that is built on a cluster of a head and a node, which are started again once they have been killed.

    Its `events` are what was killed, and how many workers each `dvc repro` had.
    """

    hows = ("worker", "stage", "dvc", "node", "head")

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(folder)
        self._draw = random.Random(f"workers of {seed}")  # another stream than that of torture()
        self._cluster: Any = None

    def start(self) -> subprocess.Popen[str]:
        """Start `dvc repro` with 1 to MOST_WORKERS workers, on two nodes."""
        if not self._cluster or not self._cluster.head_node:
            self.end_cluster()
            self._cluster = Cluster(True, head_node_args={"num_cpus": NODE_CPUS, "include_dashboard": False})
        if not self._cluster.worker_nodes:
            self._cluster.add_node(num_cpus=NODE_CPUS)
        n_workers = self._draw.randint(1, MOST_WORKERS)
        self.events[f"starts with {n_workers} workers"] += 1
        self.variables |= {
            "SCRATCHLM_WORKERS": str(n_workers), "RAY_ADDRESS": self._cluster.address, "SCRATCHLM_WORKER_SECONDS": "30"
        }  # fmt: skip
        return super().start()

    def strike(self, dvc: subprocess.Popen[str], how: str) -> None:
        """Send SIGKILL to a worker, the stage, DVC, or all processes of a node; to the stage if it has no workers.

        If no worker is lost with a node, DVC is killed some seconds later: without it, the build would end undisturbed.
        """
        if how in ("node", "head"):
            node = self._cluster.head_node if how == "head" else [*self._cluster.worker_nodes][0]
            workers = self.workers()
            self._cluster.remove_node(node, allow_graceful=False)
            if not psutil.wait_procs(workers, LOST_SECONDS)[0]:
                with suppress(subprocess.TimeoutExpired):
                    dvc.wait(self._draw.uniform(0, LOST_SECONDS))
                super().strike(dvc, "dvc")
                how = f"{how}, then dvc"
        elif how == "worker" and (workers := self.workers()):
            self._draw.choice(workers).kill()
        else:
            how = "dvc" if how == "dvc" else "stage"
            super().strike(dvc, how)
        self.events[f"killed {how}"] += 1

    def end_cluster(self) -> None:
        if self._cluster:
            self._cluster.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    os.environ |= RAY_VARIABLES
    with working_folder() as folder:
        make_clone(folder / "clone", STEPS)
        clone = ClusterClone(folder, options.seed)
        clone.build()
        try:
            add_up(torture(clone, options.kills, options.seed, LONGEST_SECONDS), TALLY)
        finally:
            clone.end_cluster()


if __name__ == "__main__":
    main()
