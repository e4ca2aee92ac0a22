"""Programs of anybody's inside the links: what they find, what is metered, and how they end."""

import json
import os
import shlex
import signal
import sys
import tempfile
import venv
from pathlib import Path

import captured
import pytest
from running import Run, alive, all_gone

PYTHON = f"{shlex.quote(sys.executable)} -S"
SERVE = f"exec {PYTHON} -m http.server 8000"
FETCH = (
    f"{PYTHON} -c 'import urllib.request as r;"
    ' print(len(r.urlopen("http://server:8000/f").read()))\''
)
SIZE = 400_000
BY_BOTH = pytest.mark.parametrize("execute", ["root", "ordinary user"], indirect=True)


def code_of(run: Run) -> dict[str, int | None]:
    return {row["node"]: row["code"] for row in run.summary["programs"]}


def output_of(run: Run, node: str, stream: str = "stdout") -> str:
    return (run.folder / "nodes" / node / f"{stream}.txt").read_text()


@pytest.fixture
def served(tmp_path: Path) -> str:
    """A server's command that serves a file of SIZE bytes, which lies in a private folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "f").write_bytes(os.urandom(SIZE))
    return f"cd {folder}; {SERVE}"


def test_bytes_of_unmodified_programs_are_metered_by_client_and_flow(execute, served):
    run = execute(
        *("--clients=2", "--wait-port=8000", "--until=clients"),
        *(f"--server={served}", f"--client={FETCH}"),
        calibrate=True,
    )
    assert run.finish() == 0, run.describe()
    summary = run.summary
    assert summary["status"] == "ok" and summary["fidelity"]["links"]["verdict"] == "pass"
    for client in summary["per_client"]:
        assert output_of(run, client["name"]) == f"{SIZE}\n"
        down = client["bytes"]["wire"]["down"]
        assert SIZE < down < 1.2 * SIZE
        assert 0 < client["bytes"]["wire"]["up"] < down / 4
    assert code_of(run) == {"server": 143, "client-1": 0, "client-2": 0}
    server, first, _ = summary["programs"]
    assert server["stopped"] and not first["stopped"]
    (flow,) = first["flows"]
    assert (flow["peer"], flow["port"], flow["serves"]) == ("10.0.0.1", 8000, False)
    assert SIZE < flow["received"] < SIZE + 1000
    by_peer = {each["peer"]: each for each in server["flows"]}
    # The end of the stream counts as one at who receives it.
    assert 0 <= flow["received"] - by_peer["10.1.0.1"]["sent"] <= 1
    assert by_peer["10.1.0.1"]["serves"]
    assert {row["node"] for row in summary["processes"]} == {"server", "client-1", "client-2"}
    assert all(row["cpu_s"] > 0 for row in summary["processes"])
    # Each line has its node, and the meters were read on the way.
    assert f"client-1: {SIZE}\n" in run.stdout
    assert len(run.events("wire")) > 2
    assert {path.name for path in run.folder.iterdir()} >= {"report.html", "trace.json"}


@BY_BOTH
def test_captures_have_the_bytes_of_the_counters_the_servers_too(execute, served):
    run = execute(
        *("--clients=1", "--wait-port=8000", "--until=clients", "--pcap"),
        *(f"--server={served}", f"--client={FETCH}"),
    )
    assert run.finish() == 0, run.describe()
    files = {path.stem: captured.read(path) for path in (run.folder / "captures").iterdir()}
    assert files.keys() == {"server", "client-1"}
    last = run.events("wire")[-1]["counters"]
    for counters, (node, address) in zip(
        last, (("server", "10.0.0.1"), ("client-1", "10.1.0.1")), strict=True
    ):
        found = captured.wire(files[node], address)
        assert [found[way][1] for way in ("up", "down")] == [way[1] for way in counters]
    assert run.summary["captures"]["packets"] == sum(map(len, files.values()))


@BY_BOTH
def test_each_node_is_a_machine_of_its_own(execute, tmp_path):
    script = tmp_path / "look.py"
    script.write_text(
        "import json, os, pathlib, resource, signal, socket, sys\n"
        "ignored = [n for n in range(1, 32) if signal.getsignal(n) == signal.SIG_IGN]\n"
        "print(json.dumps({'host': socket.gethostname(), 'pid': os.getppid(),\n"
        "  'address': socket.gethostbyname(socket.gethostname()),\n"
        "  'server': socket.gethostbyname('server'),\n"
        "  'who': socket.getnameinfo(('::ffff:10.0.0.1', 80), 0)[0],\n"
        "  'interfaces': sorted(os.listdir('/sys/class/net')),\n"
        "  'processes': len([n for n in os.listdir('/proc') if n.isdigit()]),\n"
        "  'tmp': os.listdir('/tmp'), 'shm': os.listdir('/dev/shm'),\n"
        "  'session': os.getsid(0) == os.getpid(), 'ignored': ignored,\n"
        "  'files': resource.getrlimit(resource.RLIMIT_NOFILE)[0],\n"
        "  'open': sorted(os.listdir('/proc/self/fd')),\n"
        "  'cwd': os.getcwd(), 'environment': dict(os.environ)}))\n"
        "pathlib.Path('/tmp/mine').touch(); pathlib.Path('/dev/shm/mine').touch()\n"
        "pathlib.Path(os.environ['WIRETUNE_DIR'], 'mine').touch()\n"
        "import urllib.request, time\n"
        "began = time.monotonic()\n"
        "try:\n    socket.getaddrinfo('pypi.org', 443)\nexcept OSError as error:\n"
        "    print(time.monotonic() - began < 5, file=sys.stderr)\n"
    )
    # Of this machine's: where it starts, its program, and its script.
    paths = (tmp_path, Path.cwd(), Path(sys.executable))
    needed = {path.parts[2] for path in paths if path.parts[1] == "tmp"}
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    program = (sys.executable, "-E", str(script))
    run = execute("--clients=2", "--env=COLOUR=blue", "--", *program)
    assert run.finish() == 0, run.describe()
    for rank, node in enumerate(("server", "client-1", "client-2")):
        found = json.loads(output_of(run, node))
        assert found["host"] == node
        assert found["address"] == ("10.0.0.1", "10.1.0.1", "10.1.0.2")[rank]
        assert found["server"] == "10.0.0.1" and found["who"] == "server"
        assert found["interfaces"] == ["lo", "wire0"]
        # Its init, and nobody else's.
        assert found["pid"] == 1 and found["processes"] == 2
        assert found["shm"] == [] and set(found["tmp"]) == needed
        assert found["session"] and found["ignored"] == [signal.SIGPIPE, signal.SIGXFSZ]
        assert found["cwd"] == str(Path.cwd())
        environment = found["environment"]
        assert environment["WIRETUNE_NODE"] == node and environment["COLOUR"] == "blue"
        assert environment["WIRETUNE_RANK"] == str(rank) and environment["WIRETUNE_SIZE"] == "3"
        assert environment["GLOO_SOCKET_IFNAME"] == environment["WIRETUNE_INTERFACE"] == "wire0"
        assert {name: environment.get(name) for name in before} == before
        assert (run.folder / "nodes" / node / "mine").exists()
        assert output_of(run, node, "stderr") == "True\n"
    assert not Path("/tmp/mine").exists() and not Path("/dev/shm/mine").exists()
    assert [row["lookups"] for row in run.summary["programs"]] == 3 * [["pypi.org"]]
    assert "client-2 looked up pypi.org: there is no internet inside" in run.stdout


def test_who_starts_in_a_private_folder_has_this_machines(execute):
    with tempfile.NamedTemporaryFile(dir="/tmp") as file:
        run = execute("--clients=1", "--", "ls", Path(file.name).name, cwd=Path("/tmp"))
        assert run.finish() == 0, run.describe()
    assert "nodes are without a /tmp of its own (it starts there)" in run.stdout


@BY_BOTH
def test_memory_and_queues_of_ipc_are_a_nodes_own(execute):
    """By such programs on one kernel speak past the links."""
    made = f"{PYTHON} -c 'import socket; s = socket.socket(socket.AF_UNIX); s.bind(\"/tmp/s\")'"
    run = execute("--clients=2", f"--server={made}", f"--client=ipcmk -Q; ipcs -q; {made}")
    assert run.finish() == 0, run.describe()
    for node in ("client-1", "client-2"):
        assert output_of(run, node).count("0x") == 1
    assert [row["sockets"] for row in run.summary["programs"]] == [[], [], []]


@pytest.mark.parametrize("where", ["/tmp", None], ids=["named in /tmp", "beside the results"])
def test_a_socket_that_nodes_share_is_told(execute, where):
    (Path.cwd() / "results").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="so cket", dir=where or "results") as folder:
        shared = Path(folder).absolute() / "s"
        bind = f"s = socket.socket(socket.AF_UNIX); s.bind({str(shared)!r}); s.listen()"
        run = execute(
            *("--clients=1", "--client=true", "--expect-bytes=5MB"),
            f'--server={PYTHON} -c "import socket, time; {bind}; time.sleep(1)"',
        )
        assert run.finish() == 0, run.describe()
    assert run.summary["programs"][0]["sockets"] == [str(shared)]
    assert f"Unix sockets where other nodes see them, at {shared}" in run.stdout
    assert "less than the 5MB of --expect-bytes" in run.stdout


def test_a_program_of_an_environment_in_tmp_finds_what_is_installed_there(execute, tmp_path):
    home = tmp_path / "my [1] environment, too"
    venv.create(home)
    (module,) = home.glob("lib/python*/site-packages")
    (module / "mine.py").write_text("print('mine')")
    program = str(home / "bin" / "python")
    run = execute(
        *("--clients=1", "--server=true", f"--client={shlex.quote(program)} -c 'import mine'"),
    )
    assert run.finish() == 0, run.describe()
    assert output_of(run, "client-1") == "mine\n"


@pytest.mark.parametrize(
    ("flags", "code", "reason"),
    [
        (("--server=exit 3", "--client=sleep 60"), 3, "server exited with 3"),
        (("--server=true", "--client=kill -9 $$"), 137, "client-1 killed by SIGKILL"),
        (
            ("--server=true", "--client=exit 4", "--on-failure=continue"),
            4,
            "client-1 exited with 4",
        ),
        (
            ("--server=sleep 60", "--client=true", "--time-limit=1"),
            124,
            "not finished within time_limit_s = 1",
        ),
        (("--server=true", "--client=no-such-program"), 127, "client-1 exited with 127"),
        (
            ("--server=sleep 0.1", "--client=true", "--wait-port=8000"),
            1,
            "client-1 waits for server:8000, and server exited with 0 before anybody listened",
        ),
        (
            ("--server=sleep 60", "--client=true", "--wait-port=8000", "--wait-limit=0.5"),
            1,
            "client-1 waits for server:8000, and nobody listens there after wait_limit_s = 0.5; "
            "have the command of server listen on 0.0.0.0",
        ),
        (
            (
                f"--server={SERVE} --bind 127.0.0.1",
                *("--client=true", "--wait-port=8000", "--wait-limit=5"),
            ),
            1,
            "nobody but on 127.0.0.1 listens there",
        ),
    ],
)
def test_a_run_ends_as_its_programs_do(execute, flags, code, reason):
    run = execute("--clients=1", *flags)
    assert run.finish() == code, run.describe()
    assert run.summary["status"] == "failed"
    assert reason in run.summary["reason"]
    assert run.stderr == f"failed: {run.summary['reason']}\n"


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (("--clients=1", "--server=true"), 2, "client-1: has no command; give it one by --client="),
        (
            ("--clients=1", "--links=loopback", "--", "true"),
            2,
            "links = 'loopback': a program of another's does not go through that relay",
        ),
        (("--dilation=2", "--", "true"), 2, "programs of others go by this machine's clock"),
        (("--dilation=elastic", "--", "true"), 2, "programs of others go by this machine's clock"),
        (("--", "no-such-program"), 127, "server: 'no-such-program': no such program is in any"),
        (("--", "./README.md"), 126, "server: './README.md': may not be executed; chmod +x it"),
        (("--round-regex=(", "--", "true"), 2, "round_regex = '(': "),
        (("--expect-bytes=much", "--", "true"), 2, "must be a size such as 500MB"),
        (("--env=X", "--", "true"), 2, "--env 'X': write NAME=VALUE"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_starts(execute, flags, code, says):
    run = execute(*flags)
    assert run.finish() == code, run.describe()
    assert says in run.stderr
    assert run.folders == []


def test_a_file_gives_nodes_their_own(execute, tmp_path):
    file = tmp_path / "net.toml"
    file.write_text(
        f'clients = 2\nserver = "sleep 0.3; {SERVE}"\nuntil = "clients"\n'
        '[nodes."client-*"]\ncommand = ["printenv", "NAME"]\nafter = "server:8000"\n'
        'env = {NAME = "each"}\n'
        '[nodes.client-2]\nprofile = "wifi"\nenv = {NAME = "second"}\ncwd = "/"\n'
        'command = "pwd; echo $NAME"\n'
    )
    run = execute(f"--file={file}")
    assert run.finish() == 0, run.describe()
    assert output_of(run, "client-1") == "each\n"
    assert output_of(run, "client-2") == "/\nsecond\n"
    assert [row["profile"] for row in run.summary["per_client"]] == ["4g", "wifi"]
    began = {event["node"]: event["t"] for event in run.events("started")}
    assert began["client-1"] > began["server"] + 0.3
    again = execute(f"--file={run.folder / 'config.toml'}")
    assert again.finish() == 0, again.describe()
    assert output_of(again, "client-2") == "/\nsecond\n"


def test_a_table_of_no_node_is_refused(execute, tmp_path):
    file = tmp_path / "net.toml"
    file.write_text('clients = 2\ncommand = ["true"]\n[nodes.client-3]\ncommand = "true"\n')
    run = execute(f"--file={file}")
    assert run.finish() == 2
    assert "nodes.client-3: is no node: did you mean client-" in run.stderr


STUBBORN = (
    "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "subprocess.Popen(['setsid', 'sleep', '300']); print('ready', flush=True); time.sleep(300)"
)


def wait_for_output(run: Run, node: str, text: str) -> None:
    run.wait_for("started", node=node)
    while text not in output_of(run, node):
        assert run.process.poll() is None, run.describe()


@BY_BOTH
@pytest.mark.parametrize(
    ("number", "kill"), [(signal.SIGINT, os.kill), (signal.SIGTERM, os.killpg)]
)
def test_what_interrupts_it_alone_or_with_its_group_reaches_programs(execute, number, kill):
    program = "trap 'echo caught; exit 5' INT TERM; echo ready; while :; do sleep 0.05; done"
    run = execute("--clients=1", f"--server={program}", f"--client={program}")
    for node in ("server", "client-1"):
        wait_for_output(run, node, "ready")
    kill(run.pid, number)
    assert run.finish() == 130, run.describe()
    assert output_of(run, "client-1") == output_of(run, "server") == "ready\ncaught\n"
    assert run.summary["status"] == "interrupted"
    assert code_of(run) == {"server": 5, "client-1": 5}


@BY_BOTH
def test_what_ignores_its_end_is_killed_with_all_that_it_started(execute):
    stubborn = f'exec {shlex.quote(sys.executable)} -c "{STUBBORN}"'
    run = execute(
        *("--clients=1", "--until=server", "--grace=0.3"),
        *("--server=sleep 1.5", f"--client={stubborn}"),
    )
    wait_for_output(run, "client-1", "ready")
    tree = run.tree()
    assert any("sleep" in process.name() for process in tree)
    assert run.finish() == 0, run.describe()
    assert code_of(run) == {"server": 0, "client-1": 137}
    assert all_gone(tree) == []


@BY_BOTH
def test_the_end_of_a_program_ends_its_grandchildren(execute):
    run = execute("--clients=1", "--server=sleep 2", "--client=setsid sleep 300 & sleep 0.5")
    run.wait_for("started", node="client-1")
    tree = run.tree()
    run.wait_for("exited", node="client-1")
    left = [p for p in alive(tree) if "300" in p.cmdline()]
    assert left == []
    assert run.finish() == 0, run.describe()


def test_a_run_ends_in_time_however_much_is_printed(execute):
    run = execute(
        *("--clients=1", "--time-limit=2", "--grace=0.3"),
        *("--server=yes | head -c 50000000; sleep 300", "--client=true"),
    )
    assert run.finish() == 124, run.describe()
    assert "server: [what comes too fast is not shown" in run.stdout
    assert (run.folder / "nodes" / "server" / "stdout.txt").stat().st_size == 50_000_000
    assert code_of(run) == {"server": 143, "client-1": 0}


@BY_BOTH
def test_nothing_is_left_of_a_run_that_is_killed(execute):
    stubborn = f'exec {shlex.quote(sys.executable)} -c "{STUBBORN}"'
    run = execute("--clients=2", f"--server={stubborn}", f"--client={stubborn}")
    for node in ("server", "client-1", "client-2"):
        wait_for_output(run, node, "ready")
    # They are setsid before they are sleep.
    tree = run.wait_for_programs("sleep", 3)
    os.kill(run.pid, signal.SIGKILL)
    assert all_gone(tree) == []


def test_an_ordinary_user_gets_the_same(execute, without_capabilities, served):
    run = execute(
        *("--clients=1", "--wait-port=8000", "--until=clients"),
        *(f"--server={served}", f"--client={FETCH}; hostname; id -u"),
        prefix=without_capabilities,
    )
    assert run.finish() == 0, run.describe()
    assert output_of(run, "client-1") == f"{SIZE}\nclient-1\n0\n"
    assert run.summary["link_facts"]["rootless"] is True
    assert run.summary["programs"][0]["missing"] == []


def test_where_nodes_cannot_be_isolated_it_is_said_why(execute, without_user_namespaces):
    run = execute("--clients=1", "--", "true", prefix=without_user_namespaces)
    assert run.finish() == 2, run.describe()
    assert "user.max_user_namespaces" in run.stderr
    assert run.folders == []


def test_lines_of_output_begin_rounds(execute):
    program = "for n in 1 2 3; do echo round $n; echo round $n; sleep 0.25; done"
    run = execute(
        *("--clients=1", r"--round-regex=^round (\d+)$"),
        *(f"--server={program}", "--client=true; sleep 0.5"),
    )
    assert run.finish() == 0, run.describe()
    assert [event["round"] for event in run.events("round")] == [1, 2, 3]
    rounds = run.summary["rounds"]
    assert [row["finished"] for row in rounds] == 3 * [True]
    assert all(row["seconds"] > 0.1 for row in rounds)


def test_links_change_by_a_schedule_and_the_server_has_its_own(execute, served, tmp_path):
    schedule = tmp_path / "changes.toml"
    schedule.write_text("[[schedule]]\nat_s = 0.01\nclients = [1]\ndown = { rate_kbit = 1000 }\n")
    run = execute(
        *("--clients=2", "--wait-port=8000", "--until=clients", "--server-profile=wifi"),
        *(f"--schedule={schedule}", f"--server={served}", f"--client={FETCH}"),
    )
    assert run.finish() == 0, run.describe()
    (shaped,) = run.events("shaped")
    assert (shaped["node"], shaped["down"]["rate_kbit"]) == ("client-1", 1000)
    assert run.summary["server_profile"] == "wifi"
    took = {row["node"]: row["seconds"] for row in run.summary["programs"]}
    # At that rate as much takes 3.2 s, but for what a queue holds at once.
    assert took["client-1"] > 2.5


def test_stations_have_links_by_where_they_are(execute, tmp_path):
    positions = tmp_path / "walk.toml"
    positions.write_text(
        '[access_point]\nposition = [0, 0]\nmode = "g"\nrange_m = 100\n'
        "[[station]]\nposition = [10, 0]\n[[station]]\nposition = [50, 0]\n"
    )
    run = Run(
        tmp_path / "positions",
        *(f"--positions={positions}", "--no-calibrate", "--quiet", "--", "hostname"),
        command="exec",
    )
    assert run.finish() == 0, run.describe()
    assert run.summary["clients"] == 2
    assert output_of(run, "client-2") == "client-2\n"
    assert run.stdout == f"{run.folder}\n"
