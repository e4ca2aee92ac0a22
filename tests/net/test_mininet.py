"""A Mininet, running or to be made: its hosts as nodes, and its links held against its Topo."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.library.mininet import Wiretune

pytestmark = pytest.mark.usefixtures("userspace_links")

ROOT = Path(__file__).parents[2]
LIMIT_S = 100
# A Topo by its shape, as tests have no Mininet.
TOPO = """
class Topo:
    def __init__(self, delay="30ms"):
        self.options = {"bw": 5, "delay": delay}
    def hosts(self): return ["h1", "h2"]
    def switches(self): return ["s1"]
    def nodeInfo(self, name): return {}
    def links(self, withInfo):
        return [("h1", "s1", {}), ("s1", "h2", self.options)]
topos = {"asked": Topo, "other": lambda: Topo("150ms")}
"""
SHELL = "echo ready; while :; do sleep 600; done"


def topo(name="asked"):
    made = {}
    exec(TOPO, made)  # noqa: S102
    return made["topos"][name]()


def test_hosts_of_a_topology_are_nodes_with_their_names_and_addresses():
    with Wiretune(topo(), links="userspace") as net:
        assert list(net.nodes) == ["h1", "h2"]
        seen = net.nodes["h2"].run("hostname; getent hosts h1; echo $WIRETUNE_ADDRESS", check=True)
        assert seen.stdout.split() == ["h2", "10.0.0.1", "h1", "10.0.0.2"]


@pytest.fixture
def mininet():
    """What a running Mininet is, seen from outside: a shell a host, named at its command's end."""
    with Wiretune(topo(), links="userspace") as net, contextlib.ExitStack() as owned:
        for name, node in net.nodes.items():
            words = ["sh", "-c", SHELL, f"mininet:{name}"]
            shell = owned.enter_context(node.popen(words, stdout=subprocess.PIPE, text=True))
            owned.callback(shell.kill)
            assert shell.stdout.readline() == "ready\n"
        yield net


def certify(folder, name, *flags):
    file = folder / "net.py"
    file.write_text(TOPO)
    words = [sys.executable, ROOT / "cli.py", "certify", f"--mininet={file}:{name}", *flags]
    return subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S)


@pytest.mark.usefixtures("root", "mininet")
def test_links_that_are_not_what_was_asked_are_named(tmp_path):
    done = certify(tmp_path, "other", "--json")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert found["verdict"] == "fail"
    trip = next(check for check in found["checks"] if check["name"] == "round trip")
    assert trip["link"] == "h2" and not trip["ok"] and 300 < trip["expected"] < 310
    assert "h2 round trip both: " in done.stderr


@pytest.mark.quiet
@pytest.mark.usefixtures("root", "mininet")
def test_links_that_are_what_was_asked_pass(tmp_path):
    done = certify(tmp_path, "asked")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "links checked: pass: all 3 checks hold" in done.stdout + done.stderr


def test_no_mininet_is_said_in_a_line(tmp_path):
    done = certify(tmp_path, "asked")
    assert done.returncode == 2
    assert done.stderr == "error: host h1: does not run in a Mininet here\n"
