"""Random numbers, one stream per purpose, so that no draw depends on what else was drawn before it."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from scratchlm.arithmetic.elementary import log, sqrt
from scratchlm.arithmetic.mode import is_exact


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
    if is_exact():
        _fill_portably(x, standard_deviation, _normal_draws)
    else:
        nn.init.normal_(x, std=standard_deviation)


def fill_uniform(x: Tensor, bound: float) -> None:
    """Overwrite x with draws from -bound to bound from the global stream."""
    if is_exact():
        _fill_portably(x, bound, _symmetric_draws)
    else:
        nn.init.uniform_(x, -bound, bound)


def fill_as_linear(weight: Tensor) -> None:
    """Overwrite (C_out, C_in) as torch's linear layers begin: uniform in ±1/√C_in, from the global stream."""
    if is_exact():
        fill_uniform(weight, 1 / math.sqrt(weight.shape[1]))
    else:
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


def _fill_portably(x: Tensor, factor: float, draw: Callable[[int], Tensor]) -> None:
    """torch's own normal numbers differ between instruction sets; its uniform ones are integers over 2^53."""
    if x.device.type != "meta":
        with torch.no_grad():
            x.copy_((draw(x.numel()) * factor).float().view(x.shape))


def _symmetric_draws(n: int) -> Tensor:
    return torch.rand(n, dtype=torch.float64) * 2.0 - 1.0


def _normal_draws(n: int) -> Tensor:
    """Marsaglia's polar method: a random point within the unit circle gives two numbers. Marsaglia and Bray 1964."""
    found, n_missing = [], n
    while n_missing > 0:
        x, y = _symmetric_draws(n_missing + n_missing % 2).view(-1, 2).unbind(1)
        s = x * x + y * y
        inside = (s > 0) & (s < 1)
        x, y, s = x[inside], y[inside], s[inside]
        radius = sqrt(-2.0 * log(s) / s)
        found.append(torch.stack((x * radius, y * radius), dim=1).flatten())
        n_missing -= len(found[-1])
    return torch.cat(found)[:n]
