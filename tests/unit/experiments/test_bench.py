"""Benches are refused before their first run where a later one of theirs would be."""

from typing import Any

import pytest

from experiments.bench import _checked
from experiments.plan import Bench, Row, cells
from testbed.config_error import ConfigError


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        ({"method": "dispfl", "links": "loopback"}, "method = 'dispfl': clients speak to one ano"),
        ({"transport": "gloo", "links": "loopback"}, "transport = 'gloo': clients speak to one"),
        ({"pcap": True, "links": "loopback"}, "pcap = true: loopback links have no packets"),
        ({"availability": "on:0,off:1"}, "availability 'on:0,off:1'"),
        ({"transport": "gloo", "secure": True}, "secure = true: gloo's connections"),
    ],
)
def test_what_its_launch_would_refuse_is_refused(run: dict[str, Any], reason: str) -> None:
    rows = [Row("one", {"method": "fedavg"}), Row("other", {"method": "fedavg", **run})]
    first, last = cells(Bench(rows=rows, clients=[2]))
    _checked([first])
    with pytest.raises(ConfigError, match=reason):
        _checked([first, last])
