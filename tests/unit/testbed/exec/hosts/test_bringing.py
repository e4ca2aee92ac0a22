"""Files of a node on another host on their way into the run's folder, whatever that host says."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from made_far_programs import LAYOUT, Made

from testbed.exec.hosts import bringing
from testbed.exec.hosts.messages import Tell, Told
from testbed.exec.jobs import Job
from testbed.exec.leaving import Leaving
from testbed.exec.lines import Bring, LeftOut, Parcel, Piece
from testbed.exec.nodes import Node
from testbed.exec.output import Output
from testbed.record.events import Brought
from testbed.run.hosts.messages import Spawn

LIMIT_S = 10.0
CLIENT = LAYOUT.nodes[2]
ONE = Piece(b"one", "file", 0o600, b"1")

Agent = Callable[[Made], None]


class Driven:
    """A run's folder, with a node's own in it."""

    def __init__(self, made: Made, folder: Path, owned: contextlib.ExitStack) -> None:
        self.made, self.folder, self.own = made, folder, folder / "nodes" / CLIENT.name
        self.own.mkdir(parents=True)
        output = Output(CLIENT.name, self.own)
        owned.callback(output.close)
        self.node = Node(Job(CLIENT, "x", ("x",), {}, "/", str(self.own)), output)
        self.node.channel = made.channel
        made.end.receive(Spawn, LIMIT_S)

    def brings(self, agent: Agent, cancelled: Callable[[], bool] = lambda: False) -> Brought:
        """What the driver makes of that agent."""
        told: list[tuple[str, Brought]] = []
        other = threading.Thread(target=agent, args=(self.made,))
        other.start()
        try:
            self.made.spawner.bring([self.node], lambda *one: told.append(one), cancelled)
        finally:
            other.join(LIMIT_S)
        ((name, brought),) = told
        assert name == CLIENT.name and brought.host == "b"
        # Nothing but what is in the node's own, and nothing above.
        assert [path.name for path in self.folder.iterdir()] == ["nodes"]
        assert [path.name for path in (self.folder / "nodes").iterdir()] == [CLIENT.name]
        return brought

    @property
    def came(self) -> set[str]:
        return {path.name for path in self.own.iterdir()} - {"stdout.txt", "stderr.txt"}


@pytest.fixture
def driven(tmp_path: Path) -> Iterator[Driven]:
    with contextlib.ExitStack() as owned:
        (tmp_path / "streams").mkdir()
        yield Driven(Made(owned, tmp_path / "streams"), tmp_path / "run", owned)


def answers(*parcels: Parcel) -> Agent:
    """An agent that sends these, each as it is asked."""

    def agent(made: Made) -> None:
        for parcel in parcels:
            assert made.end.receive(Tell, LIMIT_S) == Tell(CLIENT.index, Bring())
            made.end.send(Told(CLIENT.index, parcel))

    return agent


def test_a_folder_comes_parcel_by_parcel(driven: Driven, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "weights").write_bytes(bytes(range(256)) * 10_000)
    (source / "two words").mkdir()
    (source / "two words" / "log").write_text("x")
    (source / "away").symlink_to("/etc/passwd")
    leaving = Leaving(str(source))

    def agent(made: Made) -> None:
        last = False
        while not last:
            made.end.receive(Tell, LIMIT_S)
            parcel = leaving.parcel()
            made.end.send(Told(CLIENT.index, parcel))
            last = parcel.last

    brought = driven.brings(agent)
    assert (brought.files, brought.bytes) == (2, 2_560_001)
    assert brought.left_out == ["1 that lead out of the folder, such as 'away'"]
    assert (driven.own / "weights").read_bytes() == (source / "weights").read_bytes()
    assert (driven.own / "two words" / "log").read_text() == "x"
    assert driven.came == {"weights", "two words"} and not driven.made.hosts.gone()


@pytest.mark.parametrize(
    "lie",
    [
        Piece(b"../../x", "file", 0o600, b"x"),
        Piece(b"/tmp/wiretune-x", "file", 0o600, b"x"),
        Piece(b"x", "link", data=b"../../.."),
    ],
    ids=["above", "absolute", "a link"],
)
def test_a_host_that_lies_is_gone_and_has_written_nothing_else(driven: Driven, lie: Piece) -> None:
    brought = driven.brings(answers(Parcel([ONE, lie, Piece(b"two", "file")], [], last=True)))
    assert (brought.files, brought.bytes) == (1, 1)
    assert brought.left_out == ["what had not come: host b is gone"]
    assert driven.came == {"one"}
    (reason,) = driven.made.hosts.gone().values()
    assert reason.startswith("it sent of client-2's folder a ")


def test_what_nobody_asked_for_is_nobodys(driven: Driven) -> None:
    def agent(made: Made) -> None:
        made.end.receive(Tell, LIMIT_S)
        for node in (0, 1, 99):
            made.end.send(Told(node, Parcel([ONE], [], last=True)))
        made.end.send(Told(CLIENT.index, Parcel([], [], last=True)))
        made.end.send(Told(CLIENT.index, Parcel([ONE], [], last=True)))

    driven.brings(agent)
    driven.made.spawner.channel.drain()
    assert driven.came == set()


def test_names_that_a_terminal_would_obey_are_told_as_text(driven: Driven) -> None:
    left_out = [LeftOut("special", b"\x1b[2J\xff\n", 3), LeftOut("number", b"z" * 200)]
    brought = driven.brings(answers(Parcel([], left_out, last=True)))
    first, second = brought.left_out
    assert first == ("3 that are pipes, sockets, devices or mounts, such as '\\x1b[2J\\udcff\\n'")
    assert second.startswith("what comes after 10,000 files and folders, from 'zzz")
    assert len(second) < 200


def test_a_host_that_is_lost_has_its_files_lost_and_no_part_of_one_stays(driven: Driven) -> None:
    def agent(made: Made) -> None:
        torn = Piece(b"torn", "file", data=b"x", whole=False)
        answers(Parcel([ONE, torn], [], last=False))(made)
        made.end.receive(Tell, LIMIT_S)
        made.end.close()

    brought = driven.brings(agent)
    assert brought.files == 1 and brought.left_out == ["what had not come: host b is gone"]
    assert driven.came == {"one"}


def test_a_host_that_says_nothing_is_gone_after_a_while(
    driven: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bringing, "PARCEL_LIMIT_S", 0.3)
    brought = driven.brings(lambda made: None)
    assert brought.left_out == ["what had not come: host b is gone"]
    assert driven.made.hosts.gone() == {"b": "nothing of its nodes' files within 0.3 s"}


def test_there_is_an_end_to_what_never_ends(
    driven: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bringing, "LIMIT_S", 0.5)

    def agent(made: Made) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                made.end.receive(Tell, 1.0)
                made.end.send(Told(CLIENT.index, Parcel([], [], last=False)))

    brought = driven.brings(agent)
    assert brought.left_out == ["what had not come: 0.5 s were over"]
    assert not driven.made.hosts.gone()


def test_who_asks_again_for_the_end_has_it(driven: Driven) -> None:
    brought = driven.brings(lambda made: None, cancelled=lambda: True)
    assert brought.left_out == ["what had not come: the run was interrupted"]


def test_a_node_that_has_ended_before_is_told(driven: Driven) -> None:
    driven.made.channel.end()
    brought = driven.brings(lambda made: None)
    assert brought.files == 0 and brought.left_out == ["all of it: it ended before"]
