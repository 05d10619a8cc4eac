"""How the workers of a training connect; test_workers.py trains with them."""

from pathlib import Path

import pytest

from scratchlm.run.errors import UserError
from scratchlm.run.workers import LOOPBACK, Place
from scratchlm.training import exchange


def ended() -> None:
    raise UserError("worker 1 of 2 has ended")


def test_workers_that_cannot_connect_end_the_stage_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one never comes: gloo itself would wait for it half an hour."""
    place = Place(0, 2, 1, str(tmp_path), str(tmp_path / "store"), LOOPBACK)
    monkeypatch.setenv(exchange.INTERFACE_VARIABLE, "")
    with pytest.raises(UserError, match="^worker 1 of 2 has ended$"):
        exchange.connect(place, ended)
    monkeypatch.setattr(exchange, "CONNECT_SECONDS", 0.1)
    with pytest.raises(RuntimeError, match="^it has not connected for 0 seconds$"):
        exchange.connect(place)


def test_an_address_without_an_interface_is_refused_unless_the_user_names_the_interface(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(0, 2, 1, str(tmp_path), str(tmp_path / "store"), "203.0.113.9")
    monkeypatch.setenv(exchange.INTERFACE_VARIABLE, "")
    with pytest.raises(UserError, match="^no network interface of this machine has the address 203.0.113.9; set GLOO_"):
        exchange.connect(place, ended)
    monkeypatch.setenv(exchange.INTERFACE_VARIABLE, "eth0")
    with pytest.raises(UserError, match="^worker 1 of 2 has ended$"):
        exchange.connect(place, ended)
