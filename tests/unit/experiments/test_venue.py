"""Hosts that a bench's runs share: called before the first, told to each, no part of a bench."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from experiments import exec as executing
from experiments import hosts, programs_hosts, ray_hosts
from experiments.bench import _checked
from experiments.plan import Bench, Row, cells
from experiments.progress import Asking
from experiments.runner import claimed, conduct
from experiments.venue import Venue, anywhere
from testbed.config_error import ConfigError
from testbed.exec.config import ExecConfig, Request
from testbed.processes import environment
from testbed.run.config import RunConfig

HERE, SEVERAL = RunConfig(), RunConfig(hosts="127.0.0.1,127.0.0.2")
TOKEN = "x" * 32


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bytes]]:
    """Hosts that were called, and by which token; all are there."""
    found: list[tuple[str, bytes]] = []
    monkeypatch.setattr(hosts, "refuse_absent", lambda text, secret: found.append((text, secret)))
    monkeypatch.setenv(environment.TOKEN, TOKEN)
    return found


def test_a_run_is_told_its_hosts_and_their_token_and_ends_without_one_of_them(
    called: list[tuple[str, bytes]],
):
    with closing(Venue([HERE, SEVERAL, SEVERAL])) as venue:
        venue.open()
        venue.open()
        assert called == [("127.0.0.1,127.0.0.2", TOKEN.encode())]
        assert venue.take(HERE) == (HERE, {})
        told = msgspec.structs.replace(SEVERAL, on_lost_host="stop")
        assert venue.take(SEVERAL) == (told, {environment.TOKEN: TOKEN})


def test_hosts_of_a_ray_cluster_have_one_agent_each_for_all_runs(
    called: list[tuple[str, bytes]], monkeypatch: pytest.MonkeyPatch
):
    life: list[str] = []

    @contextmanager
    def agents() -> Iterator[ray_hosts.Found]:
        life.append("began")
        yield ray_hosts.Found("10.0.0.1,10.0.0.2:4", "its own")
        life.append("ended")

    monkeypatch.setattr(ray_hosts, "agents", agents)
    asked = RunConfig(hosts=ray_hosts.AUTO)
    with closing(Venue([asked])) as venue:
        assert life == []
        venue.open()
        venue.open()
        for _ in range(2):
            told, more = venue.take(asked)
            assert (told.hosts, more) == ("10.0.0.1,10.0.0.2:4", {environment.TOKEN: "its own"})
        assert called == [("10.0.0.1,10.0.0.2:4", b"its own")] and life == ["began"]
    assert life == ["began", "ended"]


def test_one_that_is_not_there_is_named_before_the_first_run_and_leaves_no_bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(environment.TOKEN, TOKEN)
    bench = Bench(rows=[Row("own", {"hosts": "127.0.0.1,127.0.0.1:9"})])
    own = cells(bench)
    with (
        pytest.raises(ConfigError, match=r"host b at 127\.0\.0\.1:9: no agent answers"),
        claimed(tmp_path, bench, {}),
        closing(Venue([cell.config for cell in own])) as venue,
    ):
        list(conduct(own, tmp_path, Silent(), venue=venue))
    assert list(tmp_path.iterdir()) == []


class Silent:
    def _nothing(self, course: Any) -> None:
        pass

    began = ticked = ended = _nothing


def test_a_bench_goes_on_with_other_hosts_than_it_began_with(tmp_path: Path):
    first = Bench(rows=[Row("a"), Row("b", {"hosts": "auto"})], run={"hosts": "h,i", "rounds": 1})
    with claimed(tmp_path, first, {}):
        pass
    run = {"hosts": "h,i,j", "place": "server=h", "rounds": 1}
    with claimed(tmp_path, msgspec.structs.replace(first, run=run), {}):
        pass
    # Where a row says of itself that it is elsewhere, that is what it is compared for.
    for other in (
        msgspec.structs.replace(first, rows=[Row("a"), Row("b")]),
        msgspec.structs.replace(first, run={"rounds": 2}),
    ):
        with (
            pytest.raises(ConfigError, match="holds another bench's runs"),
            claimed(tmp_path, other, {}),
        ):
            pass


def test_hosts_that_all_rows_have_of_themselves_are_no_part_of_a_bench():
    """As of files of programs, which are rows."""
    rows = [Row(name, {"clients": 2, "hosts": "h,i", "place": f"server={name}"}) for name in "hi"]
    parted = [Row(name, {"clients": 2, "place": f"server={name}"}) for name in "hi"]
    assert anywhere(Bench(rows=rows)) == Bench(rows=parted)
    assert anywhere(Bench(rows=rows[:1])) == Bench(rows=[Row("h", {"clients": 2})])


def test_hosts_are_asked_of_all_runs_of_programs_at_once_before_the_first(
    called: list[tuple[str, bytes]], monkeypatch: pytest.MonkeyPatch
):
    asked: list[tuple[dict[str, str | None], bytes]] = []
    said: list[str] = []

    def ask(requests: dict[str, Request], token: bytes, each: Callable[[], None]) -> None:
        asked.append(({name: own.links.on_lost_host for name, own in requests.items()}, token))
        each()

    monkeypatch.setattr(executing, "ask", ask)
    programs = ExecConfig(client="true")
    runs = {"x": HERE, "y": SEVERAL, "z": msgspec.structs.replace(SEVERAL, profile="wifi")}
    told = {name: Request(run, programs) for name, run in runs.items()}
    with closing(Venue([SEVERAL], programs=told, say=said.append)) as venue:
        venue.open()
        venue.open()
    assert asked == [({"y": "stop", "z": "stop"}, TOKEN.encode())]
    assert said == [
        "asking the hosts whether they can have each of 2 settings, before the first run"
    ]
    monkeypatch.setenv(environment.TOKEN, TOKEN)
    with closing(Venue([SEVERAL], say=said.append)) as venue:
        venue.open()
    assert len(asked) == len(said) == 1


def test_a_setting_that_hosts_cannot_have_is_named(monkeypatch: pytest.MonkeyPatch):
    def planned(request: Request, layout: Any) -> Any:
        if request.links.profile == "wifi":
            raise ConfigError("no such program is there")
        return request, layout

    @contextmanager
    def calls(*_: Any) -> Iterator[Any]:
        met.append(1)
        yield SimpleNamespace(own="a")

    met: list[int] = []
    done: list[int] = []
    monkeypatch.setattr(executing, "_planned", planned)
    monkeypatch.setattr(programs_hosts, "called", calls)
    monkeypatch.setattr(programs_hosts, "agreed", lambda them, request, layout: layout)
    programs = ExecConfig(client="true", server="true")
    told = {
        name: Request(msgspec.structs.replace(SEVERAL, profile=name), programs)
        for name in ("4g", "5g", "wifi")
    }
    with pytest.raises(ConfigError, match=r"^wifi: no such program is there"):
        executing.ask(told, TOKEN.encode(), lambda: done.append(1))
    assert (met, len(done)) == ([1], 2)


def test_who_waits_for_hosts_that_are_asked_is_told_how_far_that_is() -> None:
    said: list[str] = []
    now_s = 0.0
    asking = Asking(10, said.append, lambda: now_s)
    for _ in range(10):
        now_s += 2
        asking.asked()
    assert said[1:] == [
        "[3/10] asked; about 14 s left",
        "[6/10] asked; about 8 s left",
        "[9/10] asked; about 2 s left",
    ]


def test_what_flags_give_every_row_of_programs_is_no_part_of_one_either():
    run = {"hosts": "h,i"}
    found = anywhere(Bench(rows=[Row("a", {"clients": 2, **run})], run=run))
    assert found == Bench(rows=[Row("a", {"clients": 2})])


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        ({"hosts": "127.0.0.1"}, "are 1; name this machine's own address"),
        ({"hosts": "127.0.0.1,127.0.0.2", "links": "netem"}, "take --links=userspace"),
        ({"hosts": "127.0.0.1,127.0.0.2", "place": "client-3=c"}, "there is no host 'c'"),
        ({"hosts": "127.0.0.1,127.0.0.2", "place": "client-30=b"}, "are client-1:20, counted"),
        ({"place": "server=a"}, "there is one host"),
        ({"on_lost_host": "stop"}, "there is one host"),
    ],
)
def test_hosts_and_placements_that_no_run_can_have_are_refused_first(
    run: dict[str, Any], reason: str
):
    with pytest.raises(ConfigError, match=reason):
        _checked(cells(Bench(rows=[Row("own", run)])))
