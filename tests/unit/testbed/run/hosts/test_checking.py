"""Hosts that are asked whether they can have a part in a run: all at once, and who cannot."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import agreed
import pytest

from testbed.run.config import RunConfig
from testbed.run.hosts.far_host import FarHost, Unusable, checked
from testbed.run.hosts.line import Line, Refused
from testbed.run.hosts.messages import Answer, Check, Checked, Order, Tell

KEY = b"k" * 32
CONFIG = RunConfig(clients=3)
DIGESTS = {"model": "0" * 64}
LIMIT_S = 20.0

Agents = dict[str, Line]


def question(far: FarHost) -> Check:
    return Check(CONFIG)


@pytest.fixture
def hosts() -> Iterator[Callable[[str], tuple[list[FarHost], Agents]]]:
    """``hosts("bc")``: so many as the driver has them, and the far ends of their lines."""
    with contextlib.ExitStack() as owned:

        def make(names: str) -> tuple[list[FarHost], Agents]:
            found, agents = [], {}
            for name in names:
                listener = owned.enter_context(socket.create_server(("127.0.0.1", 0)))
                ours = owned.enter_context(socket.create_connection(listener.getsockname()))
                theirs = owned.enter_context(listener.accept()[0])
                far = FarHost.__new__(FarHost)
                line, agents[name] = agreed.lines(ours, theirs, Answer, Order)
                far.__dict__.update(name=name, where=f"host {name}", line=line)
                found.append(far)
            return found, agents

        yield make


def test_all_check_at_once(hosts: Callable[[str], tuple[list[FarHost], Agents]]):
    found, agents = hosts("bcd")
    all_asked = threading.Barrier(len(agents))

    def answer(name: str) -> None:
        assert agents[name].receive(Check, LIMIT_S).config == CONFIG
        all_asked.wait(LIMIT_S)
        agents[name].send(Checked(DIGESTS, ord(name)))

    with ThreadPoolExecutor(len(agents)) as pool:
        answers = [pool.submit(answer, name) for name in agents]
        ports = checked(found, question, DIGESTS, LIMIT_S)
        for each in answers:
            each.result()
    assert list(ports.items()) == [("b", ord("b")), ("c", ord("c")), ("d", ord("d"))]


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        (Refused("model = 'x': is none of those here"), "host c: model = 'x'"),
        (Checked({"model": "1" * 64}, 1), "host c: model is not what it is here"),
        (Tell(1, 2, 3), "host c: it said Tell"),
        (None, "host c: it closed the connection"),
    ],
)
def test_who_cannot_is_named_before_the_others_have_answered(
    hosts: Callable[[str], tuple[list[FarHost], Agents]],
    says: Refused | Checked | Tell | None,
    reason: str,
):
    found, agents = hosts("bcd")
    agents["d"].send(Checked(DIGESTS, 1))
    if says is None:
        agents["c"].close()
    else:
        agents["c"].send(says)
    with pytest.raises(Unusable, match=reason):
        checked(found, question, DIGESTS, LIMIT_S)


def test_who_says_nothing_is_named_once_the_limit_is_over(
    hosts: Callable[[str], tuple[list[FarHost], Agents]],
):
    found, agents = hosts("bcd")
    agents["c"].send(Checked(DIGESTS, 1))
    with pytest.raises(Unusable, match=r"^host b, host d: no answer within 0\.1 s$"):
        checked(found, question, DIGESTS, 0.1)
