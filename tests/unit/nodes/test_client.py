"""A client's process around its rounds: what it tells of one that the run's end overtook."""

from types import SimpleNamespace
from typing import Any

import pytest

from nodes import client as module
from nodes.peer import Overtaken, Stopped
from testbed.record import events
from testbed.run.config import RunConfig


class Peer:
    """Is in one round, and overtaken there."""

    round = 4

    def __init__(self, stopped: bool) -> None:
        self.stopped = stopped
        self._rounds = 1

    def join(self, timeout_s: float) -> None:
        pass

    def await_round(self) -> bool:
        self._rounds -= 1
        if self._rounds < 0:
            raise Stopped
        return True


class Compute:
    """Was late in its round."""

    def rest(self) -> None:
        pass

    def settle(self) -> None:
        pass

    def facts(self) -> dict[str, Any]:
        return {"cpu_s": 0.3, "device_s": 0.3, "late_s": 8.4}


class Method:
    def round(self, peer: Any) -> None:
        raise Overtaken("something else came")


@pytest.mark.parametrize(("stopped", "late_s"), [(False, 8.4), (True, 0.0)])
def test_who_is_overtaken_by_the_runs_end_is_late_for_no_round(
    stopped: bool, late_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Any] = []
    address = SimpleNamespace(host="", port=0, keys=None, began_ns=0)
    channel = SimpleNamespace(receive=lambda timeout_s: address, send=said.append)
    transport = SimpleNamespace(close=lambda: None)
    monkeypatch.setattr(module, "ClientTransport", lambda *_: transport)
    monkeypatch.setattr(module, "Peer", lambda *_: Peer(stopped))
    module.participate(
        RunConfig(),
        Method(),
        {},
        "client-1",
        {},
        8,
        lambda number: None,
        Compute(),  # type: ignore[arg-type]
        channel,  # type: ignore[arg-type]
    )
    (found,) = [each for each in said if isinstance(each, events.Computed)]
    assert (found.round, found.late_s) == (4, late_s)
