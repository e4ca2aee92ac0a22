"""What links do where a container keeps part of the kernel from them: work, or name it and a cure.

Each case is a mount namespace, a limit or a filter of system calls of its own.
"""

import platform
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.links.linux import namespaces

pytestmark = pytest.mark.usefixtures("userspace_links", "root")

ROOT = Path(__file__).parents[2]
WITHOUT_RIGHTS = "setpriv --bounding-set -all,+setfcap"
READ_ONLY = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys"
FACTS = """
from testbed.links.userspace import backend as userspace
from testbed.network.profiles import load
from testbed.network.topology import plan
assert userspace.probe() is None, userspace.probe()
network = userspace.up(plan([load("4g")] * 2))
assert network.failure() is None
print(network.facts)
network.down()
"""
PROBE = "from testbed.links.{0} import backend; print(backend.probe())"
UNSHARE_IS_REFUSED = """
import ctypes, struct
def refuse(number, error):
    # BPF: load the number, skip one line unless it is that, return the error, else allow.
    code = (0x20, 0, 0, 0, 0x15, 0, 1, number, 6, 0, 0, 0x50000 | error, 6, 0, 0, 0x7FFF0000)
    data = ctypes.create_string_buffer(struct.pack("=" + 4 * "HBBI", *code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(data)))
    libc = ctypes.CDLL(None)
    assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
refuse({number}, {error})
"""
NETWORK = """
from testbed.config_error import ConfigError
from testbed.library.network import Network
from testbed.links.interface import LinkError
try:
    with Network("4g", links="userspace") as network:
        print(network.clients[0].run("hostname; grep -c server /etc/hosts").stdout.split())
except (ConfigError, LinkError) as error:
    print(type(error).__name__, error)
"""
COMMAND = """
import subprocess, sys
done = subprocess.run([sys.executable, "cli.py", *{0}], capture_output=True, text=True)
print(done.returncode, done.stderr)
"""
SYS_UNSHARE = {"x86_64": 272, "aarch64": 97}


def inside(python: str, setup: str = "true", *, unshare: str = "-m", prefix: str = "") -> str:
    """What ``python`` prints in a container made by ``setup``."""
    command = f'{setup} && exec {prefix} "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", *unshare.split(), "sh", "-c", command, sys.executable, python],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


@pytest.mark.parametrize("prefix", ["", WITHOUT_RIGHTS], ids=["root", "rootless"])
def test_a_proc_that_cannot_be_written_is_enough(prefix: str) -> None:
    facts = inside(FACTS, READ_ONLY, prefix=prefix)
    assert f"'rootless': {bool(prefix)}" in facts
    assert "'tcp_metrics': 'kept from one connection to the next" in facts
    assert "'tcp_after_idle': 'starts slowly again" in facts


def test_where_it_can_be_nothing_is_said_of_it() -> None:
    facts = inside(FACTS)
    assert "tcp_metrics" not in facts and "tcp_after_idle" not in facts


@pytest.mark.parametrize(
    ("setup", "cure"),
    [
        ("mount -t tmpfs none /dev/net", "in a container, --device=/dev/net/tun"),
        ("mount -t tmpfs none /proc", "read /proc/self/status: No such file or directory"),
    ],
)
def test_what_a_mount_hides_is_named(setup: str, cure: str) -> None:
    assert cure in inside(PROBE.format("userspace"), setup)


@pytest.mark.skipif(platform.machine() not in SYS_UNSHARE, reason="another table of system calls")
@pytest.mark.parametrize(
    ("error", "text"), [(1, "Operation not permitted"), (38, "Function not implemented")]
)
@pytest.mark.parametrize("prefix", ["", WITHOUT_RIGHTS], ids=["root", "rootless"])
def test_a_filter_of_system_calls_is_named(error: int, text: str, prefix: str) -> None:
    number = SYS_UNSHARE[platform.machine()]
    filtered = UNSHARE_IS_REFUSED.format(number=number, error=error)
    reason = inside(filtered + PROBE.format("userspace"), prefix=prefix)
    kind = "user" if prefix else "network"
    assert reason.startswith(f"make a {kind} namespace") and text in reason
    assert namespaces._KEPT_FROM in reason


def test_too_few_namespaces_are_refused_before_and_named_where_they_run_out() -> None:
    python = """
from testbed.links.interface import LinkError
from testbed.links.linux import namespaces
from testbed.links.userspace import backend as userspace
from testbed.network.profiles import load
from testbed.network.topology import plan
print(userspace.unsupported(plan([])), userspace.unsupported(plan([load("4g")] * 2)))
try:
    for _ in range(3):
        namespaces.enter_new_network_namespace()
except LinkError as error:
    print(error)
"""
    limited = "echo 2 > /proc/sys/user/max_net_namespaces"
    first, second = inside(python, limited, unshare="-Ur").splitlines()
    limit = "the limit here is user.max_net_namespaces = 2; raise it with: sysctl -w"
    assert first.startswith(f"None needs 4 network namespaces, {limit}")
    assert second.startswith(
        "make a network namespace: No space left on device (more than user.max"
    )


def test_streams_need_a_loopback_interface_that_is_up() -> None:
    reason = inside(PROBE.format("loopback"), unshare="-n")
    assert reason.endswith("bring the loopback interface up: ip link set lo up")
    assert inside(PROBE.format("loopback")) == "None"


def test_nodes_of_which_the_kernel_makes_no_more_are_named(tmp_path: Path) -> None:
    limited = "echo 1 > /proc/sys/user/max_uts_namespaces"
    words = ["exec", "--profile=4g", "--clients=1", "--links=userspace", "--no-calibrate"]
    command = COMMAND.format([*words, f"--out={tmp_path / 'out'}", "--", "true"])
    why = "make namespaces of a node: No space left on device (one of user.max_pid_namespaces, "
    told = inside(command, limited, unshare="-Ur")
    assert told.startswith("1 ") and f"failed: isolate client-1: {why}" in told
    assert inside(NETWORK, limited, unshare="-Ur").startswith(f"LinkError start client-1: {why}")


def test_a_network_needs_no_room_on_a_disk(tmp_path: Path) -> None:
    disk = shlex.quote(str(tmp_path))
    full = f"mount -t tmpfs -o size=4k none {disk} && head -c 4096 /dev/zero > {disk}/file"
    assert inside(NETWORK, f"{full} && export TMPDIR={disk}") == "['client-1', '1']"


def test_numbers_of_another_namespaces_processes_are_not_gone_by() -> None:
    told = inside(NETWORK, unshare="-pf")
    assert told.startswith("ConfigError /proc tells of another namespace's processes; mount it")
    assert inside(NETWORK, unshare="-pf --mount-proc") == "['client-1', '1']"


def test_a_command_without_devices_says_what_it_lacks() -> None:
    told = inside(COMMAND.format(["profiles"]), "mount -t tmpfs none /dev")
    assert told.startswith("2 error: /dev/null cannot be opened: No such file or directory; have")
