"""Strangers at a run's ports: let in nowhere, and the run ends as if they were not there."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import zmq
from running import FAST, Run

from testbed.links.linux import namespaces
from testbed.processes.child import Child
from testbed.transport.wire import Header, encode_header, encode_tensors

FLAGS = ("--profile=ethernet", "--clients=2", "--rounds=3", "--no-calibrate", *FAST)
NOBODY = 65534


def speak(addresses: list[tuple[str, int]], model: dict[str, torch.Tensor]) -> None:
    """Say hello as client-1 without a key, and send an update of 1e6, until ended."""
    context = zmq.Context()
    entries, buffers = encode_tensors(model)
    while True:
        with contextlib.ExitStack() as owned:
            for host, port in addresses:
                sock = owned.enter_context(context.socket(zmq.DEALER))
                sock.setsockopt(zmq.LINGER, 0)
                sock.setsockopt(zmq.IDENTITY, b"client-1")
                sock.connect(f"tcp://{host}:{port}")
                for number in range(4):
                    header = Header("model", number, time.monotonic_ns(), {}, entries)
                    sock.send(encode_header(Header("hello", 0, time.monotonic_ns())))
                    sock.send_multipart([encode_header(header), *buffers])
            time.sleep(0.2)


def ports(run: Run) -> list[tuple[str, int]]:
    """Where the server and the relay listen on loopback links."""
    found = {
        connection.laddr
        for process in [psutil.Process(run.pid), *run.tree()]
        for connection in process.net_connections("tcp4")
        if connection.status == psutil.CONN_LISTEN
    }
    return [(address.ip, address.port) for address in found]


@contextlib.contextmanager
def stranger(run: Run, where: str) -> Iterator[None]:
    pid = run.pid_of("client-1")
    at = [("10.0.0.1", 5555)] if where == "client-1's namespace" else ports(run)
    model = {"w": torch.full((64,), 1e6)}

    def be() -> None:
        if where == "another user":
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        elif where == "client-1's namespace":
            with Path(f"/proc/{pid}/ns/net").open() as inside:
                namespaces.enter((inside.fileno(),))
        speak(at, model)

    child = Child("stranger", be)
    try:
        yield
    finally:
        assert child.ended() is None, child.ended()
        child.kill()


@pytest.fixture(scope="module")
def undisturbed(launch_for_module, best_links) -> dict[str, float]:
    run = launch_for_module("--links=loopback", *FLAGS)
    assert run.finish() == 0, run.describe()
    found: dict[str, float] = run.summary["metrics"]["final"]
    return found


@pytest.mark.parametrize("where", ["this user", "another user", "client-1's namespace"])
def test_a_stranger_changes_nothing_and_is_counted(
    launch, best_links: str, undisturbed: dict[str, float], where: str
) -> None:
    links = "--links=loopback"
    if where == "client-1's namespace":
        links = best_links
    if where != "this user" and (os.getuid() or links == best_links == "--links=loopback"):
        pytest.skip("takes root, and namespaces where it is in one")
    run = launch(links, *FLAGS)
    run.wait_for("started", node="client-1")
    with stranger(run, where):
        code = run.finish()
    assert code == 0, run.describe()
    summary = run.summary
    assert summary["secure"] == "curve"
    # The same model, but for the order of two updates in a sum.
    assert summary["metrics"]["final"] == pytest.approx(undisturbed, rel=1e-4)
    assert [each["missed"] for each in summary["rounds"]] == [[], [], []]
    (row,) = [each for each in summary["dropped_messages"] if each["node"] == "server"]
    assert (row["peer"], row["reason"]) == ("stranger", "it proved no key of this run")
    assert {each["peer"] for each in run.events("message")} == {"server", "client-1", "client-2"}


def digests(run: Run, what: str) -> set[str]:
    """Digests of all weights that a node has made, or taken."""
    lines = (run.folder / "nodes.log").read_text().splitlines()
    words = [line.split() for line in lines if line.startswith("weights ")]
    return {digest for _, found, digest in words if found == what}


def between(launch, how: str, *flags: str) -> Run:
    """A run with a man in the middle, at its end."""
    program = (sys.executable, str(Path(__file__).with_name("middle.py")), how)
    run = launch(*FLAGS, "--round-timeout=6", *flags, program=program)
    assert run.finish() == 0, run.describe()
    return run


def told(missed: list[dict[str, Any]]) -> bool:
    """Whether all were missed since what was on its way was lost with a connection."""
    lost = ("nothing within round_timeout_s = 6", "no connection with it (Host unreachable)")
    return all(event["reason"].endswith(lost) for event in missed)


def check_weights(run: Run) -> None:
    """Nobody has trained on, or averaged, what nobody has made."""
    taken = digests(run, "taken")
    assert taken and taken <= digests(run, "made")


@pytest.mark.parametrize(
    "how", ["flip", pytest.param("drop", marks=pytest.mark.thorough), "replay"]
)
def test_a_man_in_the_middle_of_relay_and_server_loses_updates_and_forges_none(
    launch, how: str
) -> None:
    run = between(launch, how, "--links=loopback")
    check_weights(run)
    # Of the two connections that he harmed both were made anew.
    missed = run.events("missed")
    assert len(run.events("connection", node="server")) >= 4
    assert told(missed)
    assert {e["round"] for e in missed} == {1}
    assert [e["peer"] for e in run.events("message", node="server", round=3, kind="model")]
    assert run.summary["metrics"]["final"]["accuracy"] > 0.8
    rows = [row for row in run.summary["dropped_messages"] if row["peer"] == "stranger"]
    # What he says once more is no handshake.
    assert {row["reason"] for row in rows} == (
        {"it proved no key of this run"} if how == "replay" else set()
    )


@pytest.mark.parametrize(
    "how",
    [
        "flip",
        pytest.param("drop", marks=pytest.mark.thorough),
        pytest.param("replay", marks=pytest.mark.thorough),
    ],
)
def test_nor_does_one_in_the_link_process(launch, best_links: str, how: str) -> None:
    """TCP makes good what is dropped or said twice; what is changed ends a connection."""
    if best_links != "--links=userspace":
        pytest.skip("takes links that carry packets")
    run = between(launch, how, best_links)
    check_weights(run)
    assert not run.summary["dropped_messages"]
    missed = run.events("missed")
    if how == "flip":
        assert len(run.events("connection", node="server")) > 2
        assert missed and told(missed)
    else:
        assert len(run.events("connection", node="server")) == 2 and missed == []
        assert digests(run, "taken") == digests(run, "made")


def test_without_keys_a_stranger_is_believed(launch) -> None:
    """What the tests above would not see if this were not so."""
    run = launch("--links=loopback", "--no-secure", *FLAGS)
    run.wait_for("started", node="client-1")
    with stranger(run, "this user"):
        run.finish()
    events = run.events("message")
    assert run.summary["secure"] is None
    assert [e for e in events if e["node"] == "server" and e["payload_bytes"] == 256]


def test_keys_are_in_nothing_that_others_can_read(launch) -> None:
    """Not in an environment, a command line, or the run's folder: no text of their form."""
    run = launch("--links=loopback", *FLAGS, anew=True)
    run.wait_for("round", round=1)
    for process in [psutil.Process(run.pid), *run.tree()]:
        with contextlib.suppress(psutil.NoSuchProcess):
            told = " ".join([*process.cmdline(), *process.environ().values()])
            assert "callers" not in told and "secret" not in told
    assert run.finish() == 0, run.describe()
    for path in run.folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b'"callers"' not in content and b'"secret"' not in content
