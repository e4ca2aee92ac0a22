"""Network namespaces held by descriptors, and TUN devices in them.

Nothing here has a name in the file system: a namespace lives as long as a process stands in it or
a descriptor points at it, so a crash leaves nothing behind. pyroute2's ``netns.create`` binds a
name and takes ten times as long; a handful of ioctls and one netlink message need no library.
"""

import ctypes
import fcntl
import os
import socket
import struct
from pathlib import Path

from testbed.links import LinkError

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
TUN_PATH = "/dev/net/tun"
INTERFACE = "wire0"
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
_RTM_NEWLINK = 16
_NLM_F_REQUEST, _NLM_F_ACK = 1, 4
_IFLA_TXQLEN = 13
_IFF_TUN_NO_PI_VNET_HDR = 0x5001
_TUN_F_CSUM_TSO4 = 0x3
_CAP_SYS_ADMIN = 21
_CAP_NET_ADMIN = 12

_libc = ctypes.CDLL(None, use_errno=True)


def _step(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise LinkError(f"{what}: {os.strerror(number)}")


def is_privileged() -> bool:
    """Whether this process may make network namespaces as it is (root's capabilities)."""
    for line in Path("/proc/self/status").read_text().splitlines():
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
    _step(
        _libc.unshare(CLONE_NEWUSER),
        "make a user namespace (see sysctl kernel.unprivileged_userns_clone, "
        "user.max_user_namespaces and kernel.apparmor_restrict_unprivileged_userns)",
    )
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    except OSError as error:
        raise LinkError(f"map user {uid} into a user namespace: {error.strerror}") from error


def enter_user_namespace_if_needed() -> int | None:
    """As ``enter_new_user_namespace``, where this process lacks the rights; its descriptor."""
    if is_privileged():
        return None
    enter_new_user_namespace()
    return os.open("/proc/self/ns/user", os.O_RDONLY | os.O_CLOEXEC)


def enter_new_network_namespace() -> int:
    """Move this thread into a new, empty network namespace; returns a descriptor of it."""
    _step(_libc.unshare(CLONE_NEWNET), "make a network namespace")
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def enter(namespaces: tuple[int, ...]) -> None:
    """Move this process into namespaces by descriptor, in the given order. Single thread only."""
    for descriptor in namespaces:
        _step(_libc.setns(descriptor, 0), "enter a node's namespace")


def enter_new_node_namespace() -> int:
    """Move this thread into a network namespace that sends nothing by itself; its descriptor."""
    network = enter_new_network_namespace()
    if Path("/proc/sys/net/ipv6").exists():
        # Else the kernel sends router solicitations over every link, and they would be counted.
        set_sysctl("net/ipv6/conf/all/disable_ipv6", "1")
        set_sysctl("net/ipv6/conf/default/disable_ipv6", "1")
    # Else a second run of TCP starts from what the first one learned.
    set_sysctl("net/ipv4/tcp_no_metrics_save", "1")
    return network


def set_sysctl(name: str, value: str) -> None:
    """Set one sysctl of the present network namespace.

    Raises:
        LinkError: the kernel lacks it or refuses the value.
    """
    try:
        Path("/proc/sys", name).write_text(value)
    except OSError as error:
        raise LinkError(f"set {name} to {value}: {error.strerror}") from error


def congestion_control() -> str:
    """What new TCP connections of the present network namespace use."""
    return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()


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
            _set_queue_length(INTERFACE, queue_packets)
            step = f"set {INTERFACE} up"
            set_flags(control, INTERFACE, IFF_UP)
            set_flags(control, "lo", IFF_UP)
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        raise LinkError(f"{step}: {error.strerror}") from error
    return descriptor


def set_address(control: socket.socket, address: str, prefix_bits: int) -> None:
    """Give INTERFACE of the namespace where ``control`` was made its one IPv4 address."""
    mask = (0xFFFFFFFF << (32 - prefix_bits)) & 0xFFFFFFFF
    fcntl.ioctl(control, _SIOCSIFADDR, _address_request(socket.inet_aton(address)))
    fcntl.ioctl(control, _SIOCSIFNETMASK, _address_request(struct.pack("!I", mask)))


def _address_request(address: bytes) -> bytes:
    return struct.pack("16sHH4s16x", INTERFACE.encode(), socket.AF_INET, 0, address)


def _set_queue_length(name: str, packets: int) -> None:
    """By netlink, since SIOCSIFTXQLEN is refused to root of a user namespace."""
    device = struct.pack("BxHiII", socket.AF_UNSPEC, 0, socket.if_nametoindex(name), 0, 0)
    body = device + struct.pack("HHI", 8, _IFLA_TXQLEN, packets)
    header = struct.pack("IHHII", 16 + len(body), _RTM_NEWLINK, _NLM_F_REQUEST | _NLM_F_ACK, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as route:
        route.send(header + body)
        (error,) = struct.unpack_from("i", route.recv(4096), len(header))
    if error:
        raise OSError(-error, os.strerror(-error))


def set_flags(control: socket.socket, device: str, flags: int) -> None:
    """Set flags of a device, such as IFF_UP, beside those that it has."""
    name = device.encode()
    reply = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16sH22x", name, 0))
    had = struct.unpack("16sH22x", reply)[1]
    fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", name, had | flags))
