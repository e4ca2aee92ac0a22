"""Network namespaces held by descriptors, and TUN devices in them.

Nothing here has a name in the file system: a namespace lives as long as a process stands in it or
a descriptor points at it, so a crash leaves nothing behind. pyroute2's ``netns.create`` binds a
name and takes ten times as long; a handful of ioctls and netlink messages need no library.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
from ipaddress import IPv4Network
from pathlib import Path

from testbed.links.interface import LinkError
from testbed.links.linux import netlink
from testbed.network.topology import Plan

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
TUN_PATH = "/dev/net/tun"
INTERFACE = "wire0"
_RTO_MIN_MS = 200
"""Linux's TCP_RTO_MIN."""
IFF_UP = 0x1
IFF_NOARP = 0x80

_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_TUNSETOFFLOAD = 0x400454D0
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_SIOCSIFADDR = 0x8916
_SIOCSIFNETMASK = 0x891C
_SIOCSIFMTU = 0x8922
_RTM_NEWLINK, _RTM_SETLINK = 16, 19
_IFLA_TXQLEN, _IFLA_AF_SPEC = 13, 26
_IFLA_INET_CONF, _FORWARDING = 1, 1
_IFLA_INET6_ADDR_GEN_MODE, _NO_ADDRESS = 8, 1
_RTM_NEWROUTE, _REPLACE, _CREATE = 24, 0x100, 0x400
_RTA_DST, _RTA_OIF, _RTA_METRICS = 1, 4, 8
_RTAX_LOCK, _RTAX_RTO_MIN, _RTAX_CONGESTION = 1, 13, 16
_IFF_TUN_NO_PI_VNET_HDR = 0x5001
_TUN_F_CSUM_TSO4 = 0x3
_CAP_SYS_ADMIN = 21
_CAP_NET_ADMIN = 12

_NO_METRICS = "net/ipv4/tcp_no_metrics_save"
_IDLE_RESTART = "net/ipv4/tcp_slow_start_after_idle"
_TCP_SETTINGS = {_NO_METRICS: "1", _IDLE_RESTART: "0"}
"""Else a second run of TCP starts from what the first one learned; and a connection starts anew
after some 0.3 s without anything to send, by the kernel's clock, which is not that of a run."""
_MAX_NETWORKS = Path("/proc/sys/user/max_net_namespaces")
_KEPT_FROM = "in a container, its capabilities or its filter of system calls forbid it"
_USER_STEP = (
    "make a user namespace (see sysctl kernel.unprivileged_userns_clone, user.max_user_namespaces "
    f"and kernel.apparmor_restrict_unprivileged_userns; {_KEPT_FROM})"
)
_NETWORK_CURES = {
    errno.ENOSPC: "more than user.max_net_namespaces allows; raise it with: "
    "sysctl -w user.max_net_namespaces=10000",
    errno.EPERM: f"it takes CAP_SYS_ADMIN; {_KEPT_FROM}",
    errno.ENOSYS: _KEPT_FROM,
    errno.EINVAL: "this kernel has no CONFIG_NET_NS",
}

_libc = ctypes.CDLL(None, use_errno=True)


def _step(result: int, what: str, cures: dict[int, str] | None = None) -> None:
    if result != 0:
        number = ctypes.get_errno()
        cure = (cures or {}).get(number)
        raise LinkError(f"{what}: {os.strerror(number)}" + (f" ({cure})" if cure else ""))


def too_few(plan: Plan) -> str | None:
    """Why a namespace a node, and one between them, are more than may be had here, or None."""
    needed = len(plan.nodes) + 1
    try:
        limit = int(_MAX_NETWORKS.read_text())
    except (OSError, ValueError):
        return None
    if needed <= limit:
        return None
    return (
        f"needs {needed} network namespaces, the limit here is user.max_net_namespaces = {limit}; "
        f"raise it with: sysctl -w user.max_net_namespaces={needed + 100}"
    )


def is_privileged() -> bool:
    """Whether this process may make network namespaces as it is (root's capabilities).

    Raises:
        LinkError: the kernel does not tell.
    """
    for line in _read("/proc/self/status").splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
            return bool(effective >> _CAP_SYS_ADMIN & 1 and effective >> _CAP_NET_ADMIN & 1)
    return False


def enter_new_user_namespace() -> None:
    """Become root of a new user namespace, mapped to the present user. Single thread only.

    Raises:
        LinkError: the kernel or its administrator does not let users have one.
    """
    uid, gid = os.geteuid(), os.getegid()
    _step(_libc.unshare(CLONE_NEWUSER), _USER_STEP)
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    except OSError as error:
        raise LinkError(f"map user {uid} into a user namespace: {error.strerror}") from error


def enter_user_namespace_if_needed() -> int | None:
    """Enter a new user namespace where this process lacks the rights; its descriptor."""
    if is_privileged():
        return None
    enter_new_user_namespace()
    return _hold("user")


def enter_new_network_namespace() -> int:
    """Move this thread into a new, empty network namespace; returns a descriptor of it."""
    _step(_libc.unshare(CLONE_NEWNET), "make a network namespace", _NETWORK_CURES)
    return _hold("net")


def _hold(kind: str) -> int:
    path = f"/proc/thread-self/ns/{kind}"
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise LinkError(f"hold a namespace by {path}: {error.strerror}") from error


def enter(namespaces: tuple[int, ...]) -> None:
    """Move this process into namespaces by descriptor, in the given order. Single thread only."""
    for descriptor in namespaces:
        _step(_libc.setns(descriptor, 0), "enter a node's namespace")


def enter_new_node_namespace() -> int:
    """Move this thread into a network namespace with TCP as runs have it; its descriptor."""
    network = enter_new_network_namespace()
    for name, value in _TCP_SETTINGS.items():
        with contextlib.suppress(LinkError):
            set_sysctl(name, value)
    return network


def set_sysctl(name: str, value: str) -> None:
    """Have a sysctl of the present network namespace, which may be so already.

    Raises:
        LinkError: the kernel lacks it, refuses the value or shows it read-only, as in containers.
    """
    path = Path("/proc/sys", name)
    try:
        if path.read_text().strip() != value:
            path.write_text(value)
    except OSError as error:
        raise LinkError(f"set {name} to {value}: {error.strerror}") from error


def tcp_facts() -> dict[str, object]:
    """Settings and metrics of TCP connections in the present network namespace."""
    found: dict[str, object] = {"congestion_default": congestion_control()}
    if not _is_set(_NO_METRICS):
        found["tcp_metrics"] = "kept from one connection to the next: /proc/sys is read-only here"
    if not _is_set(_IDLE_RESTART):
        found["tcp_after_idle"] = "starts slowly again: /proc/sys is read-only here"
    return found


def _is_set(name: str) -> bool:
    with contextlib.suppress(LinkError):
        return _read(f"/proc/sys/{name}").strip() == _TCP_SETTINGS[name]
    return False


def congestion_control() -> str:
    """Congestion control of new TCP connections in the present network namespace."""
    with socket.socket() as asked:
        name = asked.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    return name.rstrip(b"\0").decode()


def quieten(route: socket.socket, device: int, *, forward: bool = False) -> None:
    """Have a device that is still down send nothing by itself; ``forward``: pass packets on.

    With an IPv6 address of its own the kernel would send router solicitations over every link, and
    they would be counted. By messages and not by sysctl, for containers have those read-only.

    Raises:
        OSError: the kernel refuses.
    """
    if forward:
        on = netlink.attribute(_FORWARDING, struct.pack("=I", 1))
        _set_family(route, device, socket.AF_INET, netlink.nest(_IFLA_INET_CONF, on))
    mode = netlink.attribute(_IFLA_INET6_ADDR_GEN_MODE, bytes([_NO_ADDRESS]))
    try:
        _set_family(route, device, socket.AF_INET6, mode)
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT:  # This kernel has no IPv6.
            raise


def _set_family(route: socket.socket, device: int, family: int, attribute: bytes) -> None:
    body = _device(device) + netlink.nest(_IFLA_AF_SPEC, netlink.nest(family, attribute))
    netlink.change(route, _RTM_SETLINK, 0, body)


def _device(index: int) -> bytes:
    """struct ifinfomsg"""
    return struct.pack("BxHiII", socket.AF_UNSPEC, 0, index, 0, 0)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError as error:
        raise LinkError(f"read {path}: {error.strerror}") from error


def open_tun(address: str, prefix_bits: int, mtu_bytes: int, queue_packets: int) -> int:
    """Make the namespace's one TUN device, addressed and up; returns its descriptor.

    With every packet goes a virtio-net header, and TCP bursts come and go whole (``bursts``).
    The device is persistent, so that it goes with its namespace, in one batch with all others,
    instead of one kernel grace period a device when descriptors close.

    Raises:
        LinkError: naming the step that the kernel refused.
    """
    step = f"open {TUN_PATH} (modprobe tun; in a container, --device={TUN_PATH})"
    descriptor = -1
    try:
        descriptor = os.open(TUN_PATH, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        step = "make a TUN device"
        name = INTERFACE.encode()
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name, _IFF_TUN_NO_PI_VNET_HDR))
        fcntl.ioctl(descriptor, _TUNSETPERSIST, 1)
        step = "switch checksum and segmentation offload of a TUN device on"
        fcntl.ioctl(descriptor, _TUNSETOFFLOAD, _TUN_F_CSUM_TSO4)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            step = f"give {INTERFACE} the address {address}"
            set_address(control, address, prefix_bits)
            step = f"set the MTU of {INTERFACE} to {mtu_bytes}"
            fcntl.ioctl(control, _SIOCSIFMTU, struct.pack("16si20x", name, mtu_bytes))
            step = f"set the queue of {INTERFACE} to {queue_packets} packets"
            index = socket.if_nametoindex(INTERFACE)
            length = netlink.attribute(_IFLA_TXQLEN, struct.pack("=I", queue_packets))
            with netlink.open_route() as route:
                # SIOCSIFTXQLEN is refused to root of a user namespace.
                netlink.change(route, _RTM_NEWLINK, 0, _device(index) + length)
                step = f"keep {INTERFACE} quiet"
                quieten(route, index)
            step = f"set {INTERFACE} up"
            set_flags(control, INTERFACE, IFF_UP)
            set_flags(control, "lo", IFF_UP)
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        raise LinkError(f"{step}: {error.strerror}") from error
    return descriptor


def probe_no_tails() -> None:
    """Have TCP of the present network namespace send no probes for the ends of what it sent."""
    with contextlib.suppress(LinkError):  # Where it is read-only, there are some more packets.
        set_sysctl("net/ipv4/tcp_early_retrans", "0")


def tune_connections(
    network: IPv4Network, *, patience: float = 1.0, congestion: str | None = None
) -> None:
    """Give TCP over INTERFACE what nodes, which have no rights, may not ask for.

    It waits ``patience`` times as long as by itself, at least, beyond a round trip before it takes
    something for lost. ``congestion``: its congestion control, which may be any that the kernel
    has; None: the namespace's own.

    Raises:
        LinkError: the kernel refuses.
    """
    metrics = []
    if patience > 1:
        least_ms = round(patience * _RTO_MIN_MS)
        metrics.append(netlink.attribute(_RTAX_RTO_MIN, struct.pack("=I", least_ms)))
        # TCP heeds it only where it is locked.
        metrics.append(netlink.attribute(_RTAX_LOCK, struct.pack("=I", 1 << _RTAX_RTO_MIN)))
    if congestion is not None:
        metrics.append(netlink.attribute(_RTAX_CONGESTION, congestion.encode() + b"\0"))
    if not metrics:
        return
    main, static, link, unicast = 254, 4, 253, 1
    bits = network.prefixlen
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, bits, 0, 0, main, static, link, unicast, 0)
    body += netlink.attribute(_RTA_DST, network.network_address.packed)
    body += netlink.attribute(_RTA_OIF, struct.pack("=I", socket.if_nametoindex(INTERFACE)))
    body += netlink.nest(_RTA_METRICS, *metrics)
    try:
        with netlink.open_route() as route:
            netlink.change(route, _RTM_NEWROUTE, _REPLACE | _CREATE, body)
    except OSError as error:
        raise LinkError(f"set how TCP goes over {INTERFACE}: {error.strerror}") from error


def set_address(control: socket.socket, address: str, prefix_bits: int) -> None:
    """Give INTERFACE of the namespace where ``control`` was made its one IPv4 address."""
    mask = (0xFFFFFFFF << (32 - prefix_bits)) & 0xFFFFFFFF
    fcntl.ioctl(control, _SIOCSIFADDR, _address_request(socket.inet_aton(address)))
    fcntl.ioctl(control, _SIOCSIFNETMASK, _address_request(struct.pack("!I", mask)))


def _address_request(address: bytes) -> bytes:
    return struct.pack("16sHH4s16x", INTERFACE.encode(), socket.AF_INET, 0, address)


def set_flags(control: socket.socket, device: str, flags: int) -> None:
    """Set flags of a device, such as IFF_UP, beside those that it has."""
    name = device.encode()
    reply = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16sH22x", name, 0))
    had = struct.unpack("16sH22x", reply)[1]
    fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", name, had | flags))
