"""States on disk: which are kept, and where a run goes on, whatever is torn or missing."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import psutil
import pytest
import torch
from made_events import Reported
from safetensors.torch import load_file, save_file

from methods import Shard
from nodes.checkpoint import Snapshot, Unkept, state_file, store
from nodes.checkpoint.store import Checkpointer, Start, choose, ready
from testbed.config_error import ConfigError

CLIENTS = ["client-1", "client-2", "client-10"]
ID = "0123456789abcdef" * 2
NOTHING = Shard(torch.empty(0), torch.empty(0), torch.empty(0), 0)


class Node:
    """What a node keeps: the round that it has last done."""

    def __init__(self) -> None:
        self.done = torch.zeros(3)


class Run:
    """Nodes that keep their states, and what they report."""

    def __init__(self, folder: Path, identity: str | None = ID) -> None:
        self.folder = folder
        self.events = Reported()
        self.parts: dict[str, int] = {}
        self.nodes = {name: Node() for name in ("server", *CLIENTS)}
        self.keepers = {
            name: Checkpointer(
                folder, identity, name, 4, Snapshot(node, None, NOTHING), self.events
            )
            for name, node in self.nodes.items()
        }

    def save(self, name: str, number: int, **told: Any) -> None:
        self.nodes[name].done.fill_(number)
        self.keepers[name].save(number, **told)

    def round(self, number: int, *clients: str) -> None:
        """These clients do their part, and then the server."""
        for name in clients or CLIENTS:
            self.save(name, number)
            self.parts[name] = number
        self.save("server", number, parts=dict(self.parts))

    def there(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for path in self.folder.iterdir():
            node, number, _ = path.name.split(".")
            found.setdefault(node, []).append(int(number))
        return {node: sorted(numbers) for node, numbers in sorted(found.items())}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def everywhere(number: int, **others: int) -> Start:
    at = {name.replace("_", "-"): value for name, value in others.items()}
    nodes = dict.fromkeys(["server", *CLIENTS], number) | at
    return Start(number, {node: found for node, found in nodes.items() if found}, ID)


def tear(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def test_the_last_three_are_kept(run: Run) -> None:
    for number in range(1, 7):
        run.round(number)
    assert run.there() == {name: [4, 5, 6] for name in sorted(["server", *CLIENTS])}
    assert [event["event"] for event in run.events] == ["saved"] * 24
    paths = {path.name: path.stat().st_size for path in run.folder.iterdir()}
    assert run.events[-1]["bytes"] == paths["server.6.safetensors"]


def test_who_is_seldom_drawn_keeps_what_any_of_the_last_rounds_needs(run: Run) -> None:
    run.round(1)
    for number in range(2, 9):
        run.round(number, "client-1")
    run.round(9, "client-1", "client-2")
    assert run.there()["client-2"] == [1, 9]
    assert run.there()["client-10"] == [1]
    assert choose(run.folder, ID, CLIENTS, 9) == everywhere(9, client_10=1)
    assert choose(run.folder, ID, CLIENTS, 8) == everywhere(8, client_2=1, client_10=1)


def test_who_never_took_part_begins_anew(run: Run) -> None:
    run.round(1, "client-2")
    assert choose(run.folder, ID, CLIENTS, 1) == everywhere(1, client_1=0, client_10=0)


def test_who_was_cut_off_goes_on_from_there(run: Run) -> None:
    run.round(1)
    # A client that the server no longer waited for has kept what it had by then.
    run.save("client-1", 2)
    run.round(2, "client-2", "client-10")
    assert choose(run.folder, ID, CLIENTS, 2) == everywhere(2)


def test_without_a_finished_round_a_run_begins_anew(run: Run) -> None:
    assert choose(run.folder, ID, CLIENTS, 0) == Start(run=ID)
    run.save("client-1", 1)
    assert choose(run.folder, ID, CLIENTS, 0) == Start(run=ID)


def test_a_client_ahead_of_the_server_goes_back(run: Run) -> None:
    run.round(1)
    run.round(2)
    run.save("client-1", 3)
    run.save("client-2", 3)
    assert choose(run.folder, ID, CLIENTS, 2) == everywhere(2)


def test_what_is_beyond_the_record_does_not_count(run: Run) -> None:
    for number in (1, 2, 3):
        run.round(number)
    assert choose(run.folder, ID, CLIENTS, 2) == everywhere(2)


@pytest.mark.parametrize("node", ["server", *CLIENTS])
@pytest.mark.parametrize("kept", [None, 0, 5, 60, -1])
def test_a_torn_or_missing_state_is_a_round_less(run: Run, node: str, kept: int | None) -> None:
    for number in (1, 2, 3):
        run.round(number)
    path = run.folder / f"{node}.3.safetensors"
    path.unlink() if kept is None else tear(path, kept)
    assert choose(run.folder, ID, CLIENTS, 3) == everywhere(2)


def test_all_torn_is_refused_with_the_reason_of_the_last(run: Run) -> None:
    run.round(1)
    run.round(2)
    for number in (1, 2):
        tear(run.folder / f"client-2.{number}.safetensors", 100)
    with pytest.raises(ConfigError, match=r"client-2 took part in round 2.*launch --config"):
        choose(run.folder, ID, CLIENTS, 2)


@pytest.mark.thorough
def test_torn_at_every_byte_no_state_is_taken(run: Run) -> None:
    run.round(1)
    path = run.folder / "server.1.safetensors"
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ConfigError, match=r"\(server\.1\.safetensors: is torn"):
            choose(run.folder, ID, CLIENTS, 1)


def test_a_kill_while_writing_leaves_the_state_before(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    run.round(1)
    monkeypatch.setattr(Path, "replace", die)
    with pytest.raises(Killed):
        run.save("client-1", 2)
    assert (run.folder / ".client-1").exists()
    assert choose(run.folder, ID, CLIENTS, 1) == everywhere(1)
    ready(run.folder.parent, Start(1))  # Of another folder: nothing here is touched.
    assert (run.folder / ".client-1").exists()


def test_a_state_comes_back_with_what_was_told(run: Run) -> None:
    run.round(1)
    run.round(2)
    other = Run(run.folder)
    assert other.keepers["server"].load(1) == {"parts": dict.fromkeys(CLIENTS, 1)}
    assert other.nodes["server"].done.tolist() == [1, 1, 1]
    # What others read of it is what was written.
    assert load_file(run.folder / "server.2.safetensors")[".done"].tolist() == [2, 2, 2]


def test_a_resumed_run_prunes_what_was_there(run: Run) -> None:
    for number in (1, 2, 3):
        run.round(number)
    other = Run(run.folder)
    for checkpointer in other.keepers.values():
        checkpointer.load(3)
    other.round(4)
    assert other.there()["server"] == [2, 3, 4]


def test_later_states_are_of_another_past(tmp_path: Path) -> None:
    (tmp_path / store.FOLDER).mkdir()
    run = Run(tmp_path / store.FOLDER)
    for number in (1, 2, 3):
        run.round(number)
    (run.folder / ".client-1").write_bytes(b"torn")
    assert ready(tmp_path, Start(2)) == run.folder
    assert run.there() == {name: [1, 2] for name in sorted(["server", *CLIENTS])}
    store.remove(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_a_states_place_is_no_state(tmp_path: Path) -> None:
    (tmp_path / store.FOLDER).mkdir()
    run = Run(tmp_path / store.FOLDER)
    for number in (1, 2, 3):
        run.round(number)
    for node, number in (("client-1", 3), ("client-2", 1)):
        place = run.folder / f"{node}.{number}.safetensors"
        place.unlink()
        (place / "within").mkdir(parents=True)
    start = choose(run.folder, ID, CLIENTS, 3)
    assert start == everywhere(2)
    ready(tmp_path, start)
    assert run.there()["client-1"] == [1, 2]
    other = Run(run.folder)
    for checkpointer in other.keepers.values():
        checkpointer.load(2)
    for number in (3, 4):
        other.round(number)
    assert other.there() == {name: [2, 3, 4] for name in sorted(["server", *CLIENTS])}


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / store.FOLDER).write_text("in its place")
    with pytest.raises(ConfigError, match="must be a folder to write to"):
        ready(tmp_path, Start())


def test_a_full_disk_is_told_and_the_state_before_stays(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.round(1)
    little = SimpleNamespace(f_bavail=40, f_frsize=1_000_000)
    monkeypatch.setattr(os, "statvfs", lambda path: little)
    run.round(2)  # It goes as long as all nodes' states and the results have room.
    little.f_bavail = 30
    run.save("server", 3, parts={})
    assert run.events[-1] == {
        "event": "unsaved",
        "round": 3,
        "reason": "server.3.safetensors: 30 MB are free on the disk, and 4 nodes with as much to "
        "keep, beside the results, need 34",
    }
    assert run.there()["server"] == [1, 2]


def test_a_failing_disk_is_told_and_leaves_no_part(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.round(1)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "replace", fail)
    run.save("server", 2, parts={})
    assert run.events[-1]["reason"] == "server.2.safetensors: Input/output error"
    assert run.there()["server"] == [1]


def forge(run: Run, name: str, state: str, identity: str = f'"run": "{ID}", ') -> None:
    """A file that is whole in itself."""
    state = state.replace('{"told"', f'{{{identity}"name": "{name}", "told"')
    tensors = {".done": torch.zeros(3), "torch": torch.get_rng_state()}
    made = state_file.encoded(tensors, None)
    old, new = json.dumps("null"), json.dumps(state)
    header = made.header[state_file.LENGTH_BYTES :].replace(old.encode(), new.encode())
    length = len(header).to_bytes(state_file.LENGTH_BYTES, "little")
    with (run.folder / name).open("wb") as file:
        made._replace(header=length + header).write(file)


def test_what_is_forged_here_is_whole(run: Run) -> None:
    run.round(1)
    forge(run, "server.2.safetensors", '{"told": {"parts": {"client-1": 1}}}')
    assert choose(run.folder, ID, ["client-1"], 2) == Start(2, {"server": 2, "client-1": 1}, ID)


@pytest.mark.parametrize(
    "state",
    [
        "[" * 100_000,
        "null",
        "{}",
        '{"told": {"parts": {"client-1": "1"}}, "lasting": {}}',
        '{"told": {"parts": {"client-1": -1}}, "lasting": {}}',
        '{"told": {"parts": [1]}, "lasting": {}}',
        '{"told": [], "lasting": {}}',
    ],
)
def test_what_the_server_told_is_not_believed(run: Run, state: str) -> None:
    run.round(1)
    forge(run, "server.2.safetensors", state)
    assert choose(run.folder, ID, CLIENTS, 2) == everywhere(1)


@pytest.mark.parametrize(
    ("kept", "place"),
    [("client-1.2", "client-2.2"), ("client-2.1", "client-2.2"), ("server.1", "server.2")],
    ids=["another client's", "an older one", "the server's older one"],
)
def test_a_state_in_anothers_place_is_not_taken(run: Run, kept: str, place: str) -> None:
    for number in (1, 2):
        run.round(number)
    path = run.folder / f"{place}.safetensors"
    path.write_bytes((run.folder / f"{kept}.safetensors").read_bytes())
    assert choose(run.folder, ID, CLIENTS, 2) == everywhere(1)
    with pytest.raises(Unkept, match=rf"{place}.*: is another state, kept as '{kept}\.safetens"):
        run.keepers[place.partition(".")[0]].load(2)


@pytest.mark.parametrize(("kept", "goes_on"), [("0" * 32, ID), (None, ID), (ID, None)])
def test_another_runs_state_is_not_taken(
    run: Run, tmp_path: Path, kept: str | None, goes_on: str | None
) -> None:
    """Whole, and under its own name: of the same node and the same round."""
    other = Run(tmp_path / "other", kept)
    own = Run(run.folder, goes_on)
    other.folder.mkdir()
    for each in (own, other):
        for number in (1, 2):
            each.round(number)
    found = choose(run.folder, goes_on, CLIENTS, 2)
    assert found == msgspec.structs.replace(everywhere(2), run=goes_on)
    for name in ("client-2.2.safetensors", "server.1.safetensors"):
        (other.folder / name).replace(run.folder / name)
    with pytest.raises(Unkept, match=r"^client-2\.2\.safetensors: is a state of another run$"):
        own.keepers["client-2"].load(2)
    words = r"no state of it since then is whole: client-2\.2\.safetensors: is a state of another"
    with pytest.raises(ConfigError, match=words):
        choose(run.folder, goes_on, CLIENTS, 2)


def test_a_run_from_before_runs_had_an_identity_goes_on_with_states_that_have_none(
    run: Run,
) -> None:
    for name in ("server", "client-1"):
        told = '{"told": {"parts": {}}, "lasting": {}}'
        forge(run, f"{name}.1.safetensors", told, identity="")
    assert choose(run.folder, None, ["client-1"], 1).files == {"server": 1, "client-1": 1}
    with pytest.raises(ConfigError, match=r"server\.1\.safetensors: is a state of another run"):
        choose(run.folder, ID, ["client-1"], 1)


@pytest.mark.parametrize("said", ["null", "3", '"client-1.2"', '["client-1.2.safetensors"]', '""'])
def test_a_state_that_says_no_name_of_its_own_is_not_taken(run: Run, said: str) -> None:
    for number in (1, 2):
        run.round(number)
    forge(run, "client-1.2.safetensors", f'{{"run": "{ID}", "name": {said}, "lasting": {{}}}}')
    assert choose(run.folder, ID, CLIENTS, 2) == everywhere(1)


def test_a_state_without_a_checksum_is_refused_in_words(run: Run) -> None:
    run.round(1)
    path = run.folder / "server.1.safetensors"
    save_file({".done": torch.zeros(3)}, path, {"state": '{"told": {"parts": {}}}'})
    with pytest.raises(ConfigError, match=r"server\.1\.safetensors: has no checksum: an older ver"):
        choose(run.folder, ID, CLIENTS, 1)
    with pytest.raises(Unkept, match=r"server\.1\.safetensors: has no checksum"):
        run.keepers["server"].load(1)


def test_a_client_without_a_whole_state_is_told_with_the_reason(run: Run) -> None:
    run.round(1)
    path = run.folder / "client-2.1.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ConfigError, match=r"client-2\.1\.safetensors: is torn or was changed"):
        choose(run.folder, ID, CLIENTS, 1)


def test_what_could_not_be_read_again_is_not_written(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.round(1)
    monkeypatch.setattr(state_file, "MOST_HEADER_BYTES", 200)
    run.save("server", 2, parts={})
    assert "server.2.safetensors: 0.0 MB of names and numbers" in run.events[-1]["reason"]
    assert run.there()["server"] == [1]


def test_a_pipe_is_no_state(run: Run) -> None:
    run.round(1)
    os.mkfifo(run.folder / "server.2.safetensors")
    os.mkfifo(run.folder / "client-1.1000.safetensors")
    assert choose(run.folder, ID, CLIENTS, 2) == everywhere(1)


def test_rounds_of_which_there_is_no_state_cost_nothing(run: Run) -> None:
    run.round(1)
    (run.folder / f"server.{'9' * 200}.safetensors").touch()
    (run.folder / "server.\u0661.safetensors").touch()
    assert choose(run.folder, ID, CLIENTS, 50_000_000_000) == everywhere(1)


def test_a_state_larger_than_the_memory_is_not_read(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.round(1)
    little = SimpleNamespace(available=100)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: little)
    with pytest.raises(Unkept, match=r"server\.1\.safetensors: has 0 MB, and 0 are free"):
        run.keepers["server"].load(1)


def test_a_link_in_a_states_place_is_replaced(run: Run, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (run.folder / ".server").symlink_to(outside)
    run.round(1)
    assert outside.read_text() == "mine"
    outside.unlink()
    assert choose(run.folder, ID, CLIENTS, 1) == everywhere(1)
