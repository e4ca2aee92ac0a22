"""Meters of a run's network: what is collected at its end, and when that is not waited for."""

import contextlib
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from testbed.metering.capture import Captured
from testbed.run import meters as module
from testbed.run.ledger import RunFailed
from testbed.run.meters import Meters


@pytest.mark.parametrize(
    ("error", "waits"), [(None, True), (RunFailed("x"), True), (OSError(28, "No space"), False)]
)
def test_nobody_waits_for_other_hosts_captures_that_no_disk_has_room_for(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, waits: bool
) -> None:
    capture = Mock(stop=Mock(return_value=Captured([1], [0], None)))
    monkeypatch.setattr(module, "HostsCapture", lambda *_, **__: capture)
    ledger: Any = SimpleNamespace(recorder=SimpleNamespace(folder=None), record=Mock())
    plan: Any = SimpleNamespace(nodes=[], clients=[])
    with contextlib.suppress(RunFailed, OSError), contextlib.ExitStack() as owned:
        meters = Meters(plan, Mock(), ledger, owned)
        meters.prepare_capture(True, of_hosts=Mock())()
        if error is not None:
            raise error
    assert capture.stop.called == ledger.record.called == waits
    assert capture.close.called
