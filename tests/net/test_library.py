"""wiretune.Network and its pytest fixture: programs in nodes, their bytes, and their ends."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import testbed.library.network
from testbed.config_error import ConfigError
from testbed.fidelity.checks import Certificate
from testbed.library import lines
from testbed.library.network import Network, NotAsAsked
from testbed.links.interface import LinkError

pytestmark = pytest.mark.usefixtures("userspace_links")

ROOT = Path(__file__).parents[2]
LINK = "down 20mbit up 5mbit delay 5ms"
LIMIT_S = 60.0
PORT, SIZE = 8000, 300_000
SERVE = f"""
import socket
with socket.create_server(("", {PORT})) as server:
    while True:
        one = server.accept()[0]
        one.sendall(bytes({SIZE}))
        one.close()
"""
FETCH = f"""
import socket, sys
with socket.create_connection((sys.argv[1], {PORT})) as one, one.makefile("rb") as file:
    print(len(file.read()), one.getpeername()[0])
"""
HEED = """
import signal, sys
def heed(number, frame):
    print(signal.Signals(number).name, flush=True)
    sys.exit(number)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, heed)
print("ready", flush=True)
while True:
    signal.pause()
"""
PROCESSES = "echo /proc/[0-9]*"


def python(text, *arguments):
    return [sys.executable, "-c", text, *arguments]


@pytest.fixture(scope="module")
def shared():
    with Network(LINK, clients=2, links="userspace") as network:
        yield network


@pytest.fixture
def network():
    with Network(LINK, clients=1, links="userspace") as made:
        yield made


def alone(node):
    """Whether nothing runs in the node but what holds it and who asks."""
    return len(node.run(PROCESSES).stdout.split()) == 2


def at_rest(network):
    """Bytes of each link, once no packet of a program that has ended is on its way."""
    until = time.monotonic() + LIMIT_S
    while True:
        server, *clients = (found := network.bytes()).values()
        if server.up == sum(c.down for c in clients) and server.down == sum(c.up for c in clients):
            return found
        assert time.monotonic() < until, found


def test_programs_find_one_another_by_name_and_each_link_counts(shared):
    before = at_rest(shared)
    shared.server.popen(python(SERVE))
    shared.server.wait_port(PORT, LIMIT_S)
    found = shared.clients[0].run(python(FETCH, "server"), timeout=LIMIT_S, check=True)
    assert found.stdout == f"{SIZE} {shared.server.address}\n"
    after = at_rest(shared)
    assert list(after) == ["server", "client-1", "client-2"]
    moved = {name: after[name].down - before[name].down for name in after}
    assert SIZE < moved["client-1"] < 1.2 * SIZE and moved["client-2"] == 0
    assert after["server"].up - before["server"].up == moved["client-1"]
    assert after["client-1"].up - before["client-1"].up == moved["server"]


def test_a_node_is_a_machine_of_its_own_with_its_callers_files(shared, tmp_path):
    one, other = shared.clients
    assert one.run("hostname; echo $WIRETUNE_RANK $WIRETUNE_SIZE").stdout == "client-1\n1 3\n"
    assert other.run(["echo", "$WIRETUNE_NODE", "$HOME"]).stdout == "client-2 $HOME\n"
    file = tmp_path / "note"
    one.run(f"echo to > {file}; touch /dev/shm/own", env={"MORE": "1"}, check=True)
    assert file.read_text() == "to\n"
    assert other.run("ls /dev/shm; cat note; pwd", cwd=tmp_path).stdout == f"to\n{tmp_path}\n"
    assert other.run("cat", input="words").stdout == "words"
    # It fails at once, for no node answers for names.
    script = (
        "import socket\ntry: socket.getaddrinfo('example.org', 80)\nexcept OSError: print('no')"
    )
    assert one.run(python(script), timeout=LIMIT_S).stdout == "no\n"


def test_no_node_gets_the_token_of_the_hosts(monkeypatch):
    monkeypatch.setenv("WIRETUNE_TOKEN", "s3cret" * 6)
    look = "cat /proc/[0-9]*/environ | tr '\\0' '\\n' | grep s3cret"
    with Network(LINK, links="userspace") as network:
        found = network.clients[0].run(look)
    assert (found.returncode, found.stdout) == (1, "")


def test_a_program_ends_as_itself(shared):
    node = shared.clients[0]
    assert node.run("exit 7").returncode == 7
    assert node.run("kill -TERM $$").returncode == -signal.SIGTERM
    with pytest.raises(subprocess.CalledProcessError):
        node.run(["false"], check=True)
    with pytest.raises(ConfigError, match="client-1: command = \\(\\): is none"):
        node.run([])
    absent = node.run(["no-such-program"])
    assert absent.returncode == 127 and absent.stderr.startswith("client-1: no-such-program: ")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_program_gets_its_signals(shared, name):
    number = signal.Signals[name]
    with shared.clients[0].popen(python(HEED), stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout.readline() == "ready\n"
        program.send_signal(number)
        assert program.communicate(timeout=LIMIT_S)[0] == f"{name}\n"
    assert program.returncode == number


def test_what_takes_too_long_is_killed_with_all_that_it_started(network, until):
    node = network.clients[0]
    with pytest.raises(subprocess.TimeoutExpired) as raised:
        # Output that a grandchild holds would be waited for otherwise.
        node.run("echo began; sleep 600 & sleep 600", timeout=2)
    assert raised.value.stdout in ("began\n", "")
    until(lambda: alone(node), "what it started is gone", LIMIT_S)


def test_a_port_that_is_not_listened_on_is_told_with_what_is(shared):
    script = f"import socket, time; s = socket.create_server(('127.0.0.1', {PORT + 1}))\n{HEED}"
    with shared.clients[1].popen(python(script), stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout.readline() == "ready\n"
        with pytest.raises(TimeoutError, match="client-2: nobody listens on port 8001 within"):
            shared.clients[1].wait_port(PORT + 1, timeout=0.1)
        program.kill()


def test_a_link_takes_another_profile(network):
    trip = "import socket, sys, time\nbegan = time.monotonic()\n"
    trip += f"socket.create_connection((sys.argv[1], {PORT}))\nprint(time.monotonic() - began)"
    network.server.popen(python(SERVE))
    network.server.wait_port(PORT, LIMIT_S)
    network.clients[0].shape("rate 5mbit delay 200ms")
    # The order is obeyed before the answer to the next is given.
    network.bytes()
    found = network.clients[0].run(python(trip, "server"), timeout=LIMIT_S, check=True)
    assert float(found.stdout) >= 0.4


@pytest.mark.usefixtures("root")
def test_a_thread_stands_in_a_node(shared):
    import socket

    with shared.clients[0].here():
        inside = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with inside, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outside:
        inside.bind((shared.clients[0].address, 0))
        with pytest.raises(OSError):
            outside.bind((shared.clients[0].address, 0))


def test_a_network_that_is_closed_has_ended_its_programs_and_takes_no_more():
    network = Network(LINK)
    program = network.server.popen(python(HEED), stdout=subprocess.PIPE, text=True)
    assert program.stdout.readline() == "ready\n"
    network.close()
    network.close()
    assert program.returncode == -signal.SIGKILL
    program.stdout.close()
    with pytest.raises(LinkError, match="no longer up"):
        network.bytes()
    with pytest.raises(LinkError, match="no longer up"):
        network.server.wait_port(PORT)
    with pytest.raises(LinkError, match="no longer up"):
        network.server.run("true")


def test_output_that_is_still_held_is_not_waited_for(network, monkeypatch):
    monkeypatch.setattr(testbed.library.network, "END_LIMIT_S", 0.2)
    with pytest.raises(subprocess.TimeoutExpired):
        # In a session of its own it is not killed with the line.
        network.clients[0].run("setsid sleep 600 & sleep 600", timeout=0.5)


def test_a_network_ends_that_has_a_stopped_program(network, monkeypatch):
    program = network.server.popen(["sleep", "600"])
    program.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(testbed.library.network, "END_LIMIT_S", 0.5)
    network.close()
    assert program.returncode == -signal.SIGKILL


ODD = f"""
import os, signal, sys
from testbed.library.network import Network
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
with Network({LINK!r}, links="userspace") as network:
    with open(sys.argv[1], "w") as file:
        network.clients[0].run("hostname; false || echo $?", stdout=file, stderr=file)
"""


def test_a_caller_without_streams_and_with_odd_signals_has_one_too(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *python(ODD, str(tmp_path / "told"))]
    assert subprocess.run(words, env=environment, timeout=LIMIT_S).returncode == 0
    assert (tmp_path / "told").read_text() == "client-1\n1\n"


OWNER = f"""
import os, signal, sys
from testbed.library.network import Network
network = Network({LINK!r})
program = network.server.popen("sleep 600 & sleep 600")
print(network._keeper.pid, network.server._init, network.clients[0]._init, program.pid, flush=True)
signal.pause()
"""


def test_nothing_is_left_of_a_caller_that_was_killed(until):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        python(OWNER), stdout=subprocess.PIPE, text=True, env=environment
    ) as owner:
        pids = owner.stdout.readline().split()
        owner.kill()
    assert len(pids) == 4
    until(lambda: not any(running(pid) for pid in pids), "its processes are gone", LIMIT_S)


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


ROOTLESS = f"""
from testbed.config_error import ConfigError
from testbed.library.network import Network
with Network({LINK!r}, links="userspace") as network:
    print(network.clients[0].run("hostname; id -u").stdout.split())
    try:
        with network.server.here():
            pass
    except ConfigError as error:
        print("it takes root" in str(error))
"""


def test_a_user_without_rights_has_one_too(without_capabilities):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [*without_capabilities, *python(ROOTLESS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.stdout == "['client-1', '0']\nTrue\n", done.stderr


def test_links_are_measured_where_that_is_asked_for():
    with Network(LINK, certify=True) as network:
        assert network.certificate.verdict in ("pass", "fail")
        assert {check.name for check in network.certificate.checks} == {"round trip", "rate"}
    assert network.links.startswith("links: ")


def test_links_that_are_not_as_asked_are_refused_if_strict(monkeypatch):
    failed = Certificate("fail", "1 of 3 checks does not hold", [])
    answer = lines.Built("", [], failed)
    monkeypatch.setattr(Network, "_answer", lambda *_: answer)
    with pytest.raises(NotAsAsked, match="not as asked: 1 of 3 checks does not hold"):
        Network(LINK, strict=True)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"profile": "4gg"}, "did you mean 4g"),
        ({"clients": 0}, "clients = 0: must be 1 to"),
        ({"server_profile": "no"}, "no"),
        ({"links": "loopback"}, "links"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(asked, words, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(ConfigError, match=words):
        Network(**asked)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_the_example_of_a_page_runs(page, tmp_path):
    blocks = (ROOT / page).read_text().split("```python\n")[1:]
    example = next(text.partition("```")[0] for text in blocks if "wiretune.Network(" in text)
    (tmp_path / "wiretune.py").write_text("from testbed.library.network import Network\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    words = python(example if "import wiretune" in example else f"import wiretune\n{example}")
    subprocess.run(words, cwd=tmp_path, env=environment, check=True, timeout=LIMIT_S)


# The fixture

TESTS = f"""
import pytest, sys

@pytest.mark.wiretune(profile={LINK!r}, clients=2)
def test_has_its_nodes(wiretune_network):
    assert [each.name for each in wiretune_network.clients] == ["client-1", "client-2"]
    assert wiretune_network.clients[1].run("hostname").stdout == "client-2\\n"
    assert False, "to be shown"

def test_has_one_client_where_nothing_is_said(wiretune_network):
    assert len(wiretune_network.clients) == 1

@pytest.mark.wiretune("4gg")
def test_of_no_profile(wiretune_network):
    pass

@pytest.mark.wiretune(speed=3)
def test_of_no_option(wiretune_network):
    pass
"""


def test_a_fixture_gives_a_test_its_network(tmp_path):
    (tmp_path / "test_it.py").write_text(TESTS)
    words = [sys.executable, "-m", "pytest", "-p", "testbed.library.pytest_plugin"]
    words += ["-p", "no:cacheprovider", "-p", "no:xdist", "--strict-markers", "-W", "error"]
    done = subprocess.run(
        [*words, "-c", os.devnull, f"--rootdir={tmp_path}", "test_it.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    out = done.stdout
    assert "1 failed, 1 passed, 2 errors" in out, out + done.stderr
    assert "wiretune: bytes by node" in out and "client-2: 0 up, 0 down" in out
    assert "During handling" not in out
    assert "did you mean 4g" in out and "unexpected keyword argument 'speed'" in out
