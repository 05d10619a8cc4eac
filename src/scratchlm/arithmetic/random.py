"""Random numbers, one stream per purpose, so that no draw depends on what else was drawn before it."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def stream(seed: int, purpose: str) -> int:
    """The seed of an independent random stream, one per purpose, such as "initialisation" or "data order 3"."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator for one purpose; see `stream`."""
    return torch.Generator().manual_seed(stream(seed, purpose))


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Within the block, torch's global CPU stream starts at `seed`; afterwards it is where it was before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def uniform_draws(generators: Sequence[torch.Generator]) -> Tensor:
    """The next number in [0, 1) of each generator: (B,) float64 on the CPU."""
    return torch.cat([torch.rand(1, generator=source, dtype=torch.float64) for source in generators])


def fill_normal(x: Tensor, standard_deviation: float) -> None:
    """Overwrite x with draws of mean zero from the global stream."""
    nn.init.normal_(x, std=standard_deviation)


def fill_as_linear(weight: Tensor) -> None:
    """Overwrite (C_out, C_in) as torch's linear layers begin: uniform in ±1/√C_in, from the global stream."""
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's global random streams: the CPU's, and the device's if it has its own."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = getattr(torch, device.type).get_rng_state()
    return states


def restore_random_states(states: Mapping[str, Tensor]) -> None:
    """Set torch's global random streams to what `random_states` returned."""
    for name, state in states.items():
        (torch if name == "cpu" else getattr(torch, name)).set_rng_state(state)
