"""Agents on the hosts of a Ray cluster: a stand-in for Ray, whose actors are objects here."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from experiments import ray_hosts
from testbed import extras
from testbed.config_error import ConfigError

AGENT = """
import os, sys
assert os.environ["WIRETUNE_TOKEN"] and sys.argv[1] == "agent" and "--until-input-ends" in sys.argv
address = sys.argv[2].removeprefix("--listen=").removesuffix(":0")
if address == os.environ.get("WRONG"):
    sys.exit("no such address")
print(f"agent: listening at {address}:7401", flush=True)
sys.stdin.read()
open(os.environ["ENDED"], "a").write(address + "\\n")
"""


class Method:
    def __init__(self, call: Any) -> None:
        self.remote = call


class Actor:
    """One that does at once what it is told."""

    def __init__(self, made: Any) -> None:
        self.listens, self.end = Method(made.listens), Method(made.end)


class Cluster(types.ModuleType):
    """A module `ray` with so many hosts, of which this is the first."""

    def __init__(self, hosts: list[str]) -> None:
        super().__init__("ray")
        self.hosts, self.here = hosts, hosts[0]
        self.strategies: list[str] = []
        self.is_up = False
        self.exceptions = types.SimpleNamespace(RayError=type("RayError", (Exception,), {}))
        self.util = types.SimpleNamespace(
            get_node_ip_address=lambda: self.here,
            placement_group=self._group,
            remove_placement_group=lambda group: self.strategies.append("removed"),
            scheduling_strategies=types.SimpleNamespace(
                PlacementGroupSchedulingStrategy=lambda **words: words
            ),
        )

    def _group(self, bundles: list[Any], strategy: str) -> Any:
        self.strategies.append(strategy)
        return types.SimpleNamespace(wait=lambda limit_s: len(bundles) == len(self.hosts) - 1)

    def init(self, **words: Any) -> None:
        if not self.hosts[1:] and self.hosts == ["none"]:
            raise ConnectionError
        self.is_up = True

    def shutdown(self) -> None:
        self.is_up = False

    def nodes(self) -> list[dict[str, Any]]:
        alive = [{"Alive": True, "NodeManagerAddress": each} for each in self.hosts]
        return [*alive, {"Alive": False, "NodeManagerAddress": "10.0.0.99"}]

    def remote(self, kind: Any) -> Any:
        def options(num_cpus: int, scheduling_strategy: dict[str, Any]) -> Any:
            host = self.hosts[1 + scheduling_strategy["placement_group_bundle_index"]]

            def make(*words: Any) -> Actor:
                before, self.here = self.here, host
                try:
                    return Actor(kind(*words))
                finally:
                    self.here = before

            return Method(make)

        return types.SimpleNamespace(options=options)

    def get(self, results: list[Any], timeout: float) -> list[Any]:
        return results


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    def make(*hosts: str) -> Cluster:
        found = Cluster(list(hosts))
        monkeypatch.setitem(sys.modules, "ray", found)
        monkeypatch.setattr(extras, "missing", lambda extra: [])
        program = tmp_path / "program.py"
        program.write_text(AGENT)
        monkeypatch.setattr(ray_hosts, "_COMMAND", [sys.executable, str(program)])
        monkeypatch.setenv("ENDED", str(tmp_path / "ended"))
        return found

    return make


def test_every_other_host_has_an_agent_which_ends_with_the_context(
    cluster: Any, tmp_path: Path
) -> None:
    ray = cluster("10.0.0.1", "10.0.0.2", "10.0.0.3")
    with ray_hosts.listening() as found:
        assert found.addresses == "10.0.0.1,10.0.0.2:7401,10.0.0.3:7401"
        assert len(found.token) == 64
        assert ray.strategies == ["STRICT_SPREAD"] and ray.is_up
        assert not (tmp_path / "ended").exists()
    assert sorted((tmp_path / "ended").read_text().split()) == ["10.0.0.2", "10.0.0.3"]
    assert ray.strategies == ["STRICT_SPREAD", "removed"] and not ray.is_up


def test_a_driver_has_them_without_rays_threads(cluster: Any, tmp_path: Path) -> None:
    ray = cluster("10.0.0.1", "10.0.0.2")
    with ray_hosts.agents() as found:
        assert found.addresses == "10.0.0.1,10.0.0.2:7401"
        assert not ray.is_up and not (tmp_path / "ended").exists()
    assert (tmp_path / "ended").read_text().split() == ["10.0.0.2"]


def test_what_ray_cannot_do_is_said_to_the_driver(cluster: Any) -> None:
    cluster("10.0.0.1")
    with pytest.raises(ConfigError, match="this host alone"):
        ray_hosts.agents().__enter__()


def test_an_agent_that_does_not_listen_is_named_and_the_others_end(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster("10.0.0.1", "10.0.0.2", "10.0.0.3")
    monkeypatch.setenv("WRONG", "10.0.0.3")
    with pytest.raises(ConfigError, match=r"no agent listens at 10\.0\.0\.3: no such address"):
        ray_hosts.listening().__enter__()
    assert (tmp_path / "ended").read_text().split() == ["10.0.0.2"]


@pytest.mark.parametrize(
    ("hosts", "said"), [(("none",), "no Ray cluster here"), (("10.0.0.1",), "this host alone")]
)
def test_what_is_no_cluster_of_several_hosts_is_refused(
    cluster: Any, hosts: tuple[str, ...], said: str
) -> None:
    ray = cluster(*hosts)
    with pytest.raises(ConfigError, match=said):
        ray_hosts.listening().__enter__()
    assert not ray.is_up


def test_without_ray_the_extra_is_named() -> None:
    if not extras.missing("hosts"):
        pytest.skip("ray is installed")
    with pytest.raises(ConfigError, match=r"pip install 'wiretune\[hosts\]'"):
        ray_hosts.agents().__enter__()
