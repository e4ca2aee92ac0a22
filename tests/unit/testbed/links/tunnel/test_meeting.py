"""Hosts that meet: each pair once, by a token that does not travel, and no stranger."""

import contextlib
import select
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from testbed.links.interface import LinkError
from testbed.links.tunnel import callers
from testbed.links.tunnel import meeting as meetings
from testbed.links.tunnel.meeting import Meeting, listen, meet, new_token
from testbed.links.tunnel.streams import Stream

ADDRESS = "127.0.0.1"
LIMIT_S = 20.0


@pytest.fixture
def owned() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def meetings_of(owned: contextlib.ExitStack, *names: str, secure: bool = True) -> list[Meeting]:
    listeners = [owned.enter_context(listen(ADDRESS)) for _ in names]
    addresses = {
        name: listener.getsockname() for name, listener in zip(names, listeners, strict=True)
    }
    token = new_token()
    return [
        Meeting(name, addresses, listener, token, secure)
        for name, listener in zip(names, listeners, strict=True)
    ]


def met(owned: contextlib.ExitStack, *them: Meeting) -> list[dict[str, Stream]]:
    with ThreadPoolExecutor(len(them)) as pool:
        found = list(pool.map(lambda each: meet(each, LIMIT_S), them))
    for each in found:
        for stream in each.values():
            owned.callback(stream.close)
    return found


@pytest.mark.parametrize("secure", [True, False])
def test_each_pair_has_one_stream(owned: contextlib.ExitStack, secure: bool):
    names = "abcd"
    found = met(owned, *meetings_of(owned, *names, secure=secure))
    for ours, streams in zip(names, found, strict=True):
        assert list(streams) == [name for name in names if name != ours]
        for theirs, stream in streams.items():
            stream.sendall(f"{ours}->{theirs}".encode())
    for ours, streams in zip(names, found, strict=True):
        for theirs, stream in streams.items():
            assert stream.recv(100).decode() == f"{theirs}->{ours}"


def test_connections_do_not_go_by_the_hosts_own_congestion_control(owned: contextlib.ExitStack):
    for streams in met(owned, *meetings_of(owned, "a", "b")):
        for stream in streams.values():
            name = stream.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
            assert name.rstrip(b"\0").decode() in meetings.CONGESTION


def test_a_host_of_another_token_is_sent_away_and_told(owned: contextlib.ExitStack):
    first, second = meetings_of(owned, "a", "b")
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(meet, first, 2.0)
        with pytest.raises(LinkError, match=r"be known to host a at .*: is its token another"):
            meet(second._replace(token=new_token()), LIMIT_S)
        with pytest.raises(LinkError, match=r"no call from host b .*did not know the token"):
            waiting.result()


def test_strangers_do_not_keep_a_host_from_the_run(
    owned: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(callers, "LIMIT_S", 0.2)
    first, second = meetings_of(owned, "a", "b")
    address = first.addresses["a"]
    silent, gone, loud = (owned.enter_context(socket.create_connection(address)) for _ in "123")
    gone.close()
    loud.sendall(bytes(1000))
    one, two = met(owned, first, second)
    one["b"].sendall(b"x")
    assert two["a"].recv(100) == b"x"
    assert silent.recv(100).startswith(b"wiretune tunnel")


def test_a_listener_that_does_not_know_the_token_is_found_out(owned: contextlib.ExitStack):
    first, second = meetings_of(owned, "a", "b")

    def pretend() -> None:
        connection, _ = first.listener.accept()
        with connection:
            connection.sendall(meetings._GREETING + bytes(16))
            connection.recv(1 + 1 + 16 + 32, socket.MSG_WAITALL)
            connection.sendall(bytes(32))
            connection.recv(1)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(pretend)
        with pytest.raises(LinkError, match=r"be known to host a.*does not know the token"):
            meet(second, LIMIT_S)


def test_another_version_is_named(owned: contextlib.ExitStack):
    first, second = meetings_of(owned, "a", "b")

    def older() -> None:
        connection, _ = first.listener.accept()
        with connection:
            connection.sendall(meetings._GREETING[:-2] + b"0\n" + bytes(16))
            connection.recv(1)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(older)
        with pytest.raises(LinkError, match=r"host a.*is no tunnel of this version"):
            meet(second, LIMIT_S)


def test_who_passes_on_what_hosts_prove_reads_and_writes_none_of_what_follows(
    owned: contextlib.ExitStack,
):
    """He is not found out by the proof, and by what comes after it."""
    first, second = meetings_of(owned, "a", "b")
    between = owned.enter_context(listen(ADDRESS))
    changed = {**second.addresses, "a": between.getsockname()}
    passed: list[bytes] = []

    def pass_on() -> None:
        caller, _ = between.accept()
        with caller, socket.create_connection(first.addresses["a"]) as called:
            ends = {caller: called, called: caller}
            while ends:
                for end in select.select(list(ends), [], [], LIMIT_S)[0]:
                    data = end.recv(1 << 16)
                    if not data:
                        return
                    passed.append(data)
                    ends[end].sendall(data)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(pass_on)
        one, two = met(owned, first, second._replace(addresses=changed))
        one["b"].sendall(b"a packet of the run")
        assert two["a"].recv(100) == b"a packet of the run"
        for each in (one["b"], two["a"]):
            each.close()
        done.result()
    assert b"packet" not in b"".join(passed)


def test_a_host_that_never_listens_is_named(owned: contextlib.ExitStack):
    first, second = meetings_of(owned, "a", "b")
    first.listener.close()
    with pytest.raises(LinkError, match=r"reach host a at 127\.0\.0\.1:\d+ within 0\.2 s: "):
        meet(second, 0.2)


def test_a_host_that_does_not_answer_is_not_waited_for_as_one_that_will_listen(
    owned: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(meetings, "UNANSWERED_S", 0.3)
    first, second = meetings_of(owned, "a", "b")
    # Its queue is full then, and the kernel lets further calls go unanswered.
    first.listener.listen(0)
    owned.enter_context(socket.create_connection(first.addresses["a"]))
    with pytest.raises(LinkError, match=r"reach host a at .* within 0\.3 s: no answer"):
        meet(second, LIMIT_S)


def test_a_host_that_never_calls_is_named(owned: contextlib.ExitStack):
    first, _, third = meetings_of(owned, "a", "b", "c")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(meet, first, 1.0)
        with pytest.raises(LinkError, match=r"reach host b|no call|be known to"):
            meet(third._replace(addresses=dict(third.addresses) | {"b": (ADDRESS, 1)}), 0.5)
        with pytest.raises(LinkError, match=r"no call from host b"):
            waiting.result()


def test_an_address_that_is_not_here_cannot_be_listened_at():
    with pytest.raises(LinkError, match=r"listen for other hosts at 203\.0\.113\.1:0: "):
        listen("203.0.113.1")


def test_it_listens_at_the_given_address_alone(owned: contextlib.ExitStack):
    listener = owned.enter_context(listen("127.0.0.2"))
    address, port = listener.getsockname()
    assert address == "127.0.0.2"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 1.0)
