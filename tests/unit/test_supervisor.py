"""What the supervisor says of a node that ended."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from testbed import supervisor
from testbed.config import RunConfig
from testbed.profiles import load
from testbed.topology import plan


def reason_of(lines: list[dict[str, Any]], how: str) -> str:
    """Of the loss of a client that sent ``lines`` and ended ``how``."""
    layout = plan([load("4g")])
    client = layout.clients[0]
    written: list[dict[str, Any]] = []
    recorder = Mock(write=lambda node, event: written.append(event) or event)
    run = supervisor._Run(RunConfig(), layout, Mock(), Mock(), recorder, Mock())
    run._tally = Mock()
    run._channels = {0: Mock(), client.index: SimpleNamespace(drain=lambda: lines)}
    run._hear_node(client.index, Mock())
    run._on_end(client, 1, how)
    return next(event["reason"] for event in written if event["event"] == "lost")


@pytest.mark.parametrize("signal", ["SIGABRT", "SIGSEGV"])
def test_a_library_that_found_no_memory_is_told_from_other_deaths(signal: str) -> None:
    how = f"killed by {signal}"
    limited = {"event": "limited", "memory_mb": 28.0, "whose": "phone's"}
    expected = f"{how}, as by a library that gets no more memory than the phone's 28 MB"
    assert reason_of([limited], how) == expected
    assert reason_of([], how) == how
    assert reason_of([limited], "killed by SIGKILL") == "killed by SIGKILL"
