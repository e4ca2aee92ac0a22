"""Visits to a network at its keeper: who may come."""

import os
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from testbed.library import places
from testbed.library.lines import Built
from testbed.library.visits import Visits
from testbed.network.profiles import load
from testbed.network.topology import plan

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="networks stay on Linux alone")


@pytest.mark.parametrize("same", [True, False])
def test_no_other_user_is_let_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    place = places.take("lab")
    links: Any = None
    visits = Visits(place, plan([load("4g")]), Built("", [0, 0], None), cast("Any", links))
    connection = places.connect(place.folder)
    connection.settimeout(10)
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own if same else own + 1)
    visits.serve()
    if same:
        connection.sendall(b'{"type":"close"}\n')
    visits.serve()
    assert visits.closing is same
    if not same:
        assert connection.recv(1) == b""
    connection.close()
    if same:
        visits.serve()
    visits.close()
    place.remove()
