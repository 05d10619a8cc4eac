"""Start the workers of a stage on the nodes of a Ray cluster; end when one of them ends.

The stage's own process (rank 0) starts this module as a process of its own, on a node of the cluster:

    python -m scratchlm.cluster.launch N_WORKERS THREADS FOLDER CHANNEL COMMAND...

THREADS is 0 in precision `exact`, where any number gives the same bits. FOLDER holds the workers' own files. CHANNEL is
the descriptor of a socket: when all workers are ready, rank 0 receives its place and its listening socket through it.
An error is one sentence, the last line on standard error; standard output is for the user.

Ray ends the workers when this process ends, whichever way.
"""

import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
from math import ceil
from pathlib import Path
from threading import Timer
from typing import Any, NamedTuple, TextIO

from scratchlm.run.errors import UserError
from scratchlm.run.workers import (
    CLUSTER_VARIABLE,
    COUNT_VARIABLE,
    PLACE_VARIABLE,
    READY,
    SAID_WHY,
    TIMEOUT_VARIABLE,
    Place,
    end_with_stage,
    ended,
    timeout_seconds,
)

SILENT_SECONDS = 5.0  # before the user is told what is waited for
CONNECT_SECONDS = 10.0  # to the port of the cluster's head
INIT_SECONDS = 45.0  # for Ray to answer there, which takes a second


class Reservation(NamedTuple):
    """A part of the cluster: Ray's placement group, the CPUs of a worker, and by rank the address of its node."""

    group: Any
    n_cpus: int
    addresses: list[str]


class RemoteWorker:
    """The process of a worker on a node. Ray sends this class itself, so that a node needs no scratchlm to say so."""

    def start(self, command: list[str], folder: str, variables: dict[str, str], place: list[Any]) -> str:
        """Start the stage's command; return the path that the node lacks, or "". place: the values of a Place."""
        for path in (folder, command[0]):
            if not Path(path).exists():
                return path
        variables |= {"TMPDIR": tempfile.gettempdir(), PLACE_VARIABLE: json.dumps([os.getpid(), *place])}
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            command, cwd=folder, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.errors
        )
        return ""

    def is_ready(self) -> bool:
        """Whether it has become ready; False if it has ended before."""
        assert self.process.stdout
        return READY in self.process.stdout

    def wait(self) -> tuple[int, str]:
        """Wait until it has ended; return its exit status and its errors."""
        code = self.process.wait()
        self.errors.seek(0)
        return code, self.errors.read().decode(errors="replace")


def connect(address: str) -> None:
    """Connect this process with the cluster. Raises UserError if there is none, or it is of another version."""
    try:
        import ray
    except ImportError:
        raise UserError(
            f"{CLUSTER_VARIABLE} is set, but Ray is not installed in {sys.executable}; install it with `make cluster`, "
            f"or unset {CLUSTER_VARIABLE} to have the workers on this machine"
        ) from None
    host, _, port = address.rpartition(":")
    if address != "auto" and ("/" in address or not (host and port.isdecimal())):
        raise UserError(
            f"{CLUSTER_VARIABLE} is {address!r}, but must be `auto`, or the address of a cluster's head such as "
            "10.0.0.1:6379; correct or unset it"
        )
    remedy = f"correct {CLUSTER_VARIABLE}, or unset it to have the workers on this machine"
    unanswered = f"no Ray cluster answers at {address} within {INIT_SECONDS:.0f} seconds; {remedy}"
    timer = Timer(INIT_SECONDS, exit_with, [UserError(unanswered)])
    timer.daemon = True
    try:
        if address != "auto":  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        timer.start()
        ray.init(address=address, logging_level=logging.CRITICAL, log_to_driver=False)
    except OSError as error:
        raise UserError(f"no Ray cluster answers at {address} ({error.strerror or error}); {remedy}") from None
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the Ray cluster at {address} refuses ({' '.join(str(error).split())}); {remedy}") from None
    finally:
        timer.cancel()


def reserve(n_workers: int, threads: int, user: TextIO) -> Reservation:
    """Wait for the CPUs of all workers, rank 0 on this node. Raises UserError if they do not become free in time."""
    import ray
    from ray.util.placement_group import placement_group, placement_group_table

    nodes = [node for node in ray.nodes() if node["Alive"]]
    own = next(node for node in nodes if node["NodeID"] == ray.get_runtime_context().get_node_id())
    cpus = [n for node in nodes if (n := int(node["Resources"].get("CPU", 0)))]
    n_cpus = threads or max(1, min(cpus, default=1) // ceil(n_workers / max(1, len(cpus))))
    first = {f"node:{own['NodeManagerAddress']}": 0.001}
    if here := min(n_cpus, int(own["Resources"].get("CPU", 0))):  # a head may have none, for all that it computes
        first["CPU"] = here
    group = placement_group([first, *[{"CPU": n_cpus}] * (n_workers - 1)], strategy="SPREAD")
    seconds = timeout_seconds()
    silent = min(SILENT_SECONDS, seconds)
    if not group.wait(silent):
        free = ray.available_resources().get("CPU", 0)
        lack = (
            f"{n_workers} workers of {n_cpus} CPUs each on the Ray cluster, which has {len(nodes)} nodes with "
            f"{sum(cpus)} CPUs, {free:.0f} of them free"
        )
        print(f"{os.environ.get('DVC_STAGE', 'training')}: waiting for {lack}", file=user, flush=True)
        if not group.wait(seconds - silent):
            raise UserError(
                f"waited {seconds:.0f} seconds ({TIMEOUT_VARIABLE}) for {lack}; add nodes, lower {COUNT_VARIABLE} or "
                "wait for other jobs, then run this again to resume"
            )
    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    places = placement_group_table(group)["bundles_to_node_id"]
    return Reservation(group, n_cpus, [addresses[places[rank]] for rank in range(n_workers)])


def run_workers(reservation: Reservation, shared: str, channel: socket.socket, command: list[str]) -> None:
    """Start a worker on each node of the reservation but the first, which is rank 0's; raise UserError as one ends."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group, n_cpus, addresses = reservation
    listener = socket.create_server((addresses[0], 0), backlog=len(addresses))
    store = f"{addresses[0]}:{listener.getsockname()[1]}"
    first, *places = (Place(i, len(addresses), n_cpus, shared, store, address) for i, address in enumerate(addresses))
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    workers = {
        place: ray.remote(RemoteWorker)
        .options(num_cpus=n_cpus, scheduling_strategy=PlacementGroupSchedulingStrategy(group, place.rank))
        .remote()
        for place in places
    }
    folder = str(Path.cwd())
    started = {place: worker.start.remote(command, folder, variables, [*place]) for place, worker in workers.items()}
    ready = {place: worker.is_ready.remote() for place, worker in workers.items()}
    exits = {worker.wait.remote(): place for place, worker in workers.items()}
    for place, reference in started.items():
        if lacking := result_of(place, reference):
            raise UserError(
                f"{lacking} does not exist on {place.address}, a node of the Ray cluster; give all nodes the project's "
                "folder and environment at the same path, then run this again"
            )
    if all(result_of(place, reference) for place, reference in ready.items()):
        socket.send_fds(channel, [json.dumps(first).encode()], [listener.fileno()])
    listener.close()
    (first_exit,), _ = ray.wait([*exits])
    raise ended(name_of(exits[first_exit]), *result_of(exits[first_exit], first_exit))


def result_of(place: Place, reference: Any) -> Any:
    """The result of a method of the worker at this place. Raises UserError if Ray has lost the worker."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        kind = type(error).__name__
        raise UserError(f"Ray has lost {name_of(place)} or its node ({kind}); run this again to resume") from None


def name_of(place: Place) -> str:
    """The name of a worker in messages."""
    return f"worker {place.rank} of {place.n_workers} on {place.address}"


def main(n_workers: str, threads: str, folder: str, channel: str, *command: str) -> None:
    """Start the workers, and wait until one ends. Raises UserError with the reason."""
    end_with_stage()
    with os.fdopen(os.dup(1), "w") as user, socket.socket(fileno=int(channel)) as child_end:
        os.dup2(2, 1)  # what Ray prints is not for the user
        connect(os.environ[CLUSTER_VARIABLE])
        run_workers(reserve(int(n_workers), int(threads), user), folder, child_end, [*command])


def exit_with(error: UserError) -> None:
    """End this process with a sentence, which is the last line: Ray would write more as it exits."""
    print(error, file=sys.stderr, flush=True)
    os._exit(SAID_WHY)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        exit_with(error)
