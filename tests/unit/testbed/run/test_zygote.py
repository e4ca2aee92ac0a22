"""The zygote: why it ends where it can fork no node."""

import errno
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from testbed.links.interface import Endpoint
from testbed.network.profiles import load
from testbed.network.topology import plan
from testbed.processes.child import NotForked
from testbed.run import zygote
from testbed.run.zygote import NodeFailed, Zygote

WORDS = "start server: there are as many processes as a limit"
LIMIT_S = 20.0


def test_a_node_for_which_there_is_no_process_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_more = Mock(side_effect=NotForked(errno.EAGAIN, "no"))
    monkeypatch.setattr(zygote, "fork_alone", no_more)
    layout = plan([load("4g")])
    program: Any = Mock(peer_to_peer=False, prepare=lambda: None)
    with (tmp_path / "log").open("wb") as log:
        forks = Zygote(layout, program, log.fileno(), secure=False)
    try:
        forks.wait_ready(LIMIT_S)
        place = Endpoint((), "127.0.0.1", 1)
        ours = forks.spawn(layout.server, place)
        until = time.monotonic() + LIMIT_S
        while forks.failure() is None and time.monotonic() < until:
            time.sleep(0.01)
        with pytest.raises(NodeFailed, match=WORDS):
            forks.spawn(layout.clients[0], place)
        ours.close()
    finally:
        forks.down()
    assert "Traceback" not in (tmp_path / "log").read_text()
