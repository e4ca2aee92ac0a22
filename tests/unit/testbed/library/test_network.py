"""What a Network and its nodes are asked for, before anything of it is built."""

import math
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest

from testbed.config_error import ConfigError
from testbed.library.network import Network, NetworkNode
from testbed.network.profiles import load
from testbed.network.topology import Plan, plan

OWN = "[up]\nrate_kbit = 1000\n[down]\nrate_kbit = 2000\n"


@pytest.mark.parametrize("name", ["own.toml", "Smith, J:2.toml", 'a "b".toml'])
def test_a_profile_may_be_a_path_whatever_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Plan] = []

    def build(self: Network, layout: Plan, *_: Any, **__: Any) -> None:
        asked.append(layout)

    monkeypatch.setattr(Network, "_build", build)
    (tmp_path / name).write_text(OWN)
    Network(tmp_path / name, clients=2, server_profile=tmp_path / name)
    (layout,) = asked
    assert len(layout.clients) == 2
    assert [node.profile and node.profile.up.rate_kbit for node in layout.nodes] == [1000] * 3


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"profile": None}, "profile = None: must be a link profile's name, a path, or a link in"),
        ({"profile": 4}, "profile = 4: must be"),
        ({"server_profile": b"4g"}, "server_profile = b'4g': must be"),
        ({"clients": "2"}, "clients = '2': must be 1 to 4096, a whole number"),
        ({"clients": 2.0}, "clients = 2.0: must be"),
        ({"links": None}, "unknown links 'None'"),
    ],
)
def test_what_is_of_another_kind_is_refused(
    asked: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(ConfigError, match=words):
        Network(**asked)


@pytest.fixture
def node() -> NetworkNode:
    """One of no network."""
    return NetworkNode(cast("Any", None), plan([load("4g")]).clients[0], 0)


@pytest.mark.parametrize("port", [0, -1, 65536, "8000", 8000.0, None])
def test_what_is_no_port_is_not_waited_for(node: NetworkNode, port: Any) -> None:
    with pytest.raises(ConfigError, match="must be a whole number, 1 to 65535"):
        node.wait_port(port)


@pytest.mark.parametrize("timeout", [math.nan, -1.0, math.inf, "5", None])
def test_a_port_is_waited_for_within_a_limit(node: NetworkNode, timeout: Any) -> None:
    with pytest.raises(ConfigError, match="must be seconds from 0"):
        node.wait_port(8000, timeout)


@pytest.mark.parametrize("option", [{"shell": True}, {"executable": "/bin/sh"}, {"user": 0}])
def test_options_that_would_be_those_of_who_joins_are_refused(
    node: NetworkNode, option: dict[str, Any]
) -> None:
    ((name, value),) = option.items()
    with pytest.raises(ConfigError, match=f"client-1: {name} = {value!r}: is no option here"):
        node.run("true", **option)
    with pytest.raises(ConfigError, match="is no option here"):
        node.popen(["true"], **option)
    node._network = cast("Any", _Up())
    with pytest.raises(StopIteration):
        node.popen(["true"], shell=False, user=None)


class _Up:
    """A network of which nothing more is asked than whether it is up."""

    def check(self) -> None:
        raise StopIteration
