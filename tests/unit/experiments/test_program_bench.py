"""A bench of programs: its rows, what is refused, what a failed program leaves, and its table."""

import json
import os
import tomllib
import types
from pathlib import Path
from typing import Any

import made_programs
import made_run
import msgspec
import pytest

from experiments import bench as benching
from experiments import bench_hosts, hosts, plan, program_bench, runner
from experiments import exec as executing
from experiments.plan import Bench, Cell, Outcome, Row
from experiments.progress import Lines
from experiments.venue import Venue
from testbed.config_error import ConfigError
from testbed.exec.config import ExecConfig, Request
from testbed.processes import environment
from testbed.record.host_summary import HostSummary

FILE = 'clients = 2\nprofile = "3g"\nstrict = true\nserver = "true"\nclient = "false"\n'
AXES: dict[str, Any] = {
    **{"profiles": ["4g", "wifi"], "clients": [], "seeds": [], "stages": []},
    **{"vary": {}, "grid": {}, "grid_seeds": []},
}


LINKS = types.SimpleNamespace(name="userspace"), "asked for"
TWO = "127.0.0.1,127.0.0.2"


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "net.toml").write_text(FILE)
    return str(tmp_path / "net.toml")


def asked(*files: str, repeat: int | None = None, run: Any = None, **axes: Any) -> Bench:
    return benching._asked(None, (), files, {**AXES, **axes}, repeat, run or {})


def test_what_differs_in_its_repeat_alone_is_looked_at_once(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str | None] = []

    def check(request: Request) -> dict[str, str]:
        looked.append(request.links.profile)
        return {f"profile {request.links.profile}": "ab"}

    monkeypatch.setattr(executing, "check", check)
    read = benching._checked(plan.cells(asked(file, repeat=3)))
    assert looked == ["4g", "wifi"]
    assert read.keys() >= {"profile 4g", "profile wifi"}


def test_a_file_is_a_row_on_every_axis(file: str, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text('command = ["true"]\npositions = "nowhere.toml"\n')
    bench = asked(file, str(tmp_path / "other.toml"), repeat=2, clients=[1, 3])
    cells = plan.cells(bench)
    assert len(cells) == 2 * 2 * 2 * 2
    assert cells[0].id == "net-4g-1c-run1"
    first = cells[0].config
    assert (first.profile, first.clients, first.strict) == ("4g", 1, True)
    assert cells[1].config.positions is None
    assert program_bench.request(cells[0]).programs == ExecConfig(server="true", client="false")
    # What a flag says wins over the file, and what the file alone says stays.
    (cell,) = plan.cells(asked(file, run={"links": "netem"}, profiles=[]))
    assert (cell.config.profile, cell.config.links, cell.id) == ("3g", "netem", "net-3g-2c")


@pytest.mark.parametrize(
    ("axes", "run", "says"),
    [
        ({"seeds": [1]}, {}, r"seeds = \[1\]: programs draw nothing .* take --repeat"),
        ({"stages": ["int8"]}, {}, "stages = .*: is of methods"),
        ({"grid": {"learning_rate": [1]}}, {}, "grid = .*: is of methods"),
        ({"vary": {"device_class": ["pi"]}}, {}, "vary: device_class: programs have none"),
        ({}, {"rounds": 3}, "rounds: programs have none; what they have: profile, "),
        ({"vary": {"dilation": [2]}}, {}, "vary: dilation: programs have none"),
    ],
)
def test_what_only_methods_have_is_refused(
    file: str, axes: dict[str, Any], run: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        asked(file, run=run, **axes)


def test_profiles_that_no_client_takes_are_refused(tmp_path: Path) -> None:
    """Runs over one link would stand in the table as over several."""
    file = tmp_path / "net.toml"
    file.write_text(f'{FILE}[nodes."client-[12]"]\nprofile = "3g"\n')
    says = "row 'net': profiles change nothing with 2 clients, for each has one of its own table"
    with pytest.raises(ConfigError, match=says):
        asked(str(file))
    with pytest.raises(ConfigError, match=says):
        asked(str(file), clients=[3, 2])
    assert len(plan.cells(asked(str(file), clients=[3]))) == 2
    assert len(plan.cells(asked(str(file), profiles=[]))) == 1


def test_rows_of_both_kinds_and_two_of_a_name_are_refused(file: str) -> None:
    rows = [Row("a"), Row("b", programs=ExecConfig(command=("true",)))]
    with pytest.raises(ConfigError, match="methods and of programs have no table in common"):
        program_bench.check(Bench(rows=rows))
    with pytest.raises(ConfigError, match=r"--exec .*none\.toml: cannot read it"):
        asked(file.replace("net.toml", "none.toml"))
    with pytest.raises(ConfigError, match="two rows are called 'net'"):
        asked(file, file)
    with pytest.raises(ConfigError, match="--preset or --methods or --exec"):
        benching._asked(None, ("fedavg",), (file,), AXES, None, {})


def test_what_exec_would_refuse_is_refused_with_the_case(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments import programs

    monkeypatch.setattr(programs, "backend", lambda request, layout: LINKS)
    read = benching._checked(plan.cells(asked(file)))
    assert {"profile 4g", "profile wifi", "the congestion control"} <= read.keys()
    (tmp_path / "bad.toml").write_text('clients = 1\nserver = "true"\n')
    with pytest.raises(ConfigError, match="bad, 4g, 1 clients: client-1: has no command"):
        benching._checked(plan.cells(asked(str(tmp_path / "bad.toml"))))
    (tmp_path / "none.toml").write_text('command = ["no-such-program"]\nclients = 1\n')
    with pytest.raises(ConfigError, match="none, 4g, 1 clients: server: 'no-such-program'"):
        benching._checked(plan.cells(asked(str(tmp_path / "none.toml"))))
    with pytest.raises(ConfigError, match="links = 'loopback'"):
        benching._checked(plan.cells(asked(file, run={"links": "loopback"})))


def test_hosts_of_a_file_or_a_flag_are_those_of_its_runs(tmp_path: Path) -> None:
    """As of the config.toml of a run on several."""
    text = f'{FILE}hosts = "{TWO}"\nplace = "server=b"\non_lost_host = "continue"\n'
    (tmp_path / "net.toml").write_text(text)
    (first, second) = plan.cells(asked(str(tmp_path / "net.toml")))
    assert (first.config.hosts, first.config.place) == (TWO, "server=b")
    assert program_bench.settings([first, second, first]).keys() == {
        "net, 4g, 2 clients",
        "net, wifi, 2 clients",
    }
    flags = {"hosts": "127.0.0.1,127.0.0.3", "place": "client-1=b"}
    (cell, _) = plan.cells(asked(str(tmp_path / "net.toml"), run=flags))
    assert (cell.config.hosts, cell.config.place) == tuple(flags.values())


@pytest.mark.parametrize(
    ("run", "says"),
    [
        ({"hosts": "127.0.0.1"}, "are 1; name this machine's own address"),
        ({"hosts": TWO, "links": "netem"}, "take --links=userspace"),
        ({"hosts": TWO, "place": "client-3=b"}, "the run's clients are client-1:2"),
        ({"hosts": TWO, "place": "server=c"}, "there is no host 'c'"),
        ({"place": "server=b"}, "there is one host"),
        ({"on_lost_host": "stop"}, "there is one host"),
    ],
)
def test_hosts_that_no_run_of_programs_can_have_are_refused_with_the_case(
    file: str, run: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments import programs

    monkeypatch.setattr(programs, "backend", lambda request, layout: LINKS)
    with pytest.raises(ConfigError, match=f"net, 4g, 2 clients: .*{says}"):
        benching._checked(plan.cells(asked(file, run=run)))


def test_programs_of_several_hosts_are_looked_for_by_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments import programs

    monkeypatch.setattr(programs, "backend", lambda request, layout: LINKS)
    (tmp_path / "net.toml").write_text('clients = 1\ncommand = ["no-such-program"]\n')
    for several in (TWO, "auto"):
        benching._checked(plan.cells(asked(str(tmp_path / "net.toml"), run={"hosts": several})))


def test_scripts_that_commands_name_are_files_that_runs_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were changed make another bench; what commands write does not."""
    from experiments import programs

    monkeypatch.setattr(programs, "backend", lambda request, layout: LINKS)
    (tmp_path / "serve.py").write_text("1")
    (tmp_path / "page").write_text("written by a run")
    (tmp_path / "tool").write_text("#!/bin/sh")
    (tmp_path / "tool").chmod(0o755)
    (tmp_path / "my, own.py").write_text("1")
    (tmp_path / "so it is.sh").write_text("1")
    (tmp_path / "net.toml").write_text(
        f'clients = 3\nserver = "python3 {tmp_path}/serve.py > {tmp_path}/page"\n'
        f'[nodes.client-1]\ncommand = ["./tool", "page", "{tmp_path}"]\ncwd = "{tmp_path}"\n'
        f'[nodes.client-2]\ncommand = ["sh", "--init-file={tmp_path}/so it is.sh"]\n'
        f"[nodes.client-3]\ncommand = \"exec python3 '{tmp_path}/my, own.py' | cat\"\n"
    )
    cells = plan.cells(asked(str(tmp_path / "net.toml")))
    scripts = ("serve.py", "tool", "my, own.py", "so it is.sh")
    names = {str(tmp_path / name) for name in scripts}
    before = benching._checked(cells)
    assert names == {name for name in before if "/" in name and str(tmp_path) in name}
    (tmp_path / "serve.py").write_text("2")
    after = benching._checked(cells)
    assert {name for name in before if before[name] != after[name]} == {f"{tmp_path}/serve.py"}


EXEC = """
import json, os, pathlib, sys, tomllib
assert sys.argv[1] == "exec"
flags = dict(flag.lstrip("-").split("=", 1) for flag in sys.argv[2:] if "=" in flag)
config = tomllib.loads(pathlib.Path(flags["file"]).read_text())
out = pathlib.Path(flags["out"])
count = len(list(out.glob("run-*")))
(out / "environment").write_text(json.dumps(dict(os.environ)))
if config["client"] == "refused":
    sys.exit("error: refused")
(out / f"run-{count}").mkdir()
found = FAILED if config["client"] == "false" else GOOD
(out / f"run-{count}" / "summary.json").write_text(json.dumps(found))
sys.exit(found["status"])
"""
GOOD = made_run.summary(made_programs.events())
FAILED = made_run.summary(made_programs.events(codes={"client-2": 28}))


@pytest.fixture
def execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "cli.py"
    texts = {"GOOD": msgspec.to_builtins(GOOD), "FAILED": msgspec.to_builtins(FAILED)}
    script.write_text("".join(f"{name} = {value!r}\n" for name, value in texts.items()) + EXEC)
    monkeypatch.setattr(runner, "CLI", script)
    monkeypatch.setattr(runner, "POLL_S", 0.005)


def conducted(folder: Path, *clients: str) -> tuple[list[Outcome], list[str]]:
    said: list[str] = []
    rows = [Row(name, {"clients": 2}, programs=ExecConfig(client=name)) for name in clients]
    cells = plan.cells(Bench(rows=rows))
    return list(runner.conduct(cells, folder, Lines(said.append))), said


def test_a_failed_program_has_figures_and_runs_again(execute: None, tmp_path: Path) -> None:
    for round_ in (1, 2):
        found, said = conducted(tmp_path / "out", "true", "false", "refused")
        assert [each.summary for each in found] == [GOOD, FAILED, None]
        assert [each.reason for each in found] == [
            None,
            "client-2 exited with 28",
            "error: refused",
        ]
        assert any("FAILED: client-2 exited with 28" in text for text in said)
        assert len(list((tmp_path / "out" / "false-2c").glob("run-*"))) == round_
    assert len(list((tmp_path / "out" / "true-2c").glob("run-*"))) == 1


def test_programs_find_the_environment_of_their_user(
    execute: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what this process has set for its own libraries since it began."""
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    conducted(tmp_path / "out", "true")
    found = json.loads((tmp_path / "out" / "true-2c" / "environment").read_text())
    assert found.get("OMP_NUM_THREADS") != "77"
    assert found["PATH"] == os.environ["PATH"] and "NO_COLOR" not in found.keys() - os.environ


def test_a_run_of_programs_on_several_hosts_is_told_them_and_their_token(
    execute: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "refuse_absent", lambda text, secret: None)
    monkeypatch.setattr(executing, "ask", lambda request, token: None)
    (tmp_path / "token").write_text("x" * 32)
    row = Row("net", {"clients": 2, "hosts": TWO}, programs=ExecConfig(client="true"))
    cells = plan.cells(Bench(rows=[row]))
    venue = Venue([cell.config for cell in cells], tmp_path / "token")
    (found,) = runner.conduct(cells, tmp_path, Lines(lambda text: None), venue=venue)
    assert found.summary == GOOD
    told = json.loads((tmp_path / "net-2c" / "environment").read_text())
    assert told[environment.TOKEN] == "x" * 32
    config = tomllib.loads((tmp_path / "net-2c" / "config.toml").read_text())
    assert (config["hosts"], config["on_lost_host"]) == (TWO, "stop")


def test_a_run_that_has_lost_a_host_is_none_of_those_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run" / "summary.json"
    path.parent.mkdir()
    (cell,) = plan.cells(Bench(rows=[Row("net", programs=ExecConfig(client="false"))]))
    rows = [HostSummary(name=name, address=name, cores=1, memory_mb=1, nodes=1) for name in "ab"]
    for gone, summary in ((None, True), ("no answer within 3 s", False)):
        rows[1].gone = gone
        path.write_bytes(msgspec.json.encode({**msgspec.to_builtins(FAILED), "hosts": rows}))
        found = runner._failed(Outcome(cell, None, "it failed"), [path])
        assert (found.summary is not None) == summary


def test_the_hosts_of_all_runs_are_a_table_beside(file: str) -> None:
    cells = plan.cells(asked(file))
    assert bench_hosts.table(bench_hosts.together([outcome(cells[0], GOOD)])) is None
    assert bench_hosts.data([outcome(cells[0], GOOD), outcome(cells[1], None)]) == {}

    def ran(rtt_ms: float) -> Any:
        own = HostSummary(name="a", address="10.0.0.1", cores=2, memory_mb=1, nodes=2)
        other = msgspec.structs.replace(own, name="b", address="10.0.0.2", rtt_ms=rtt_ms)
        other.rate_to_kbit = 9e5
        return msgspec.structs.replace(GOOD, hosts=[own, other])

    outcomes = [outcome(cells[0], ran(1)), outcome(cells[1], ran(3))]
    shown = bench_hosts.table(bench_hosts.together(outcomes))
    assert shown is not None
    lines = list(zip(*(column.cells for column in shown.columns), strict=True))
    assert lines[0][:3] == ("a 10.0.0.1", "2", "2") and lines[0][5] == "-"
    assert lines[1][:1] + lines[1][5:8] == ("b 10.0.0.2", "2.00 (1.00 to 3.00)", "900", "-")
    told = bench_hosts.data(outcomes)
    assert [row["rtt_ms"] for row in told[cells[1].id]] == [None, 3]
    json.dumps(told)


def outcome(cell: Cell, summary: Any, reason: str | None = None) -> Outcome:
    return Outcome(cell, summary, reason)


def test_a_case_is_a_row_with_exits_and_medians(file: str) -> None:
    bench = asked(file, repeat=2)
    cells = plan.cells(bench)
    outcomes = [
        outcome(cells[0], GOOD),
        outcome(cells[1], None, "nothing came of it"),
        outcome(cells[2], FAILED, "client-2 exited with 28"),
        outcome(cells[3], None, "nothing came of it"),
    ]
    (case,) = program_bench.together(outcomes)
    assert case.figures["runs"] == 2 and case.figures["runs_failed"] == 1
    (row,) = program_bench.data([case])
    both = "server stopped (143); clients 0 | server stopped (143); clients 1 x 0, 1 x 28"
    assert (row["links"], row["row"], row["exits"]) == ("4g, 2 clients", "net", both)
    assert row["seconds"] == 4 and row["down_mb"] == pytest.approx(0.8)
    assert row["resent_segments"] == 6 and row["certificate"] == "skipped"
    assert [[role["role"] for role in run] for run in row["roles"]] == 2 * [["server", "clients"]]
    json.dumps(row)
    table = program_bench.table(bench, [case])
    assert [str(next(iter(column.cells))) for column in table.columns][:5] == [
        *("4g, 2 clients", "net", "2", both, "4.00")
    ]
