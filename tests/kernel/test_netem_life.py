"""netem from probe to down, in a kernel that has it."""

import pytest
from uml import LIMIT_S

from testbed.links.netem.backend import NO_NETEM

pytestmark = pytest.mark.timeout(LIMIT_S + 30)


def told(found, measure, backend="netem"):
    entry = found[backend][measure]
    assert "error" not in entry, entry["error"]
    return entry["found"]


@pytest.mark.parametrize(
    ("measure", "reason"),
    [
        ("probe_without_netem", NO_NETEM),
        ("probe_without_veth", "make the veth pair of server: {unsupported} (modprobe veth)"),
        ("probe_without_ifb", "make the ifb device of server uplink: {unsupported} (modprobe ifb)"),
        ("probe", None),
    ],
)
def test_probe_names_what_is_missing_and_the_cure(found, measure, reason):
    expected = reason and reason.format(unsupported="Operation not supported")
    assert told(found, measure) == expected


@pytest.mark.parametrize("backend", ["netem", "userspace"])
def test_a_user_without_rights_gets_a_network(found, backend):
    seen = told(found, "rootless", backend)
    if seen["reason"] is not None and seen["reason"].startswith("make a user namespace"):
        pytest.skip(f"this User-Mode Linux has no user namespaces: {seen['reason']}")
    assert seen["reason"] is None
    assert seen["facts"]["rootless"] is True
    assert 12 <= seen["ms"] < 12 + 8
    assert 60 <= seen["slower_ms"] < 60 + 8
    # Five pings and three: 20 bytes of IP, 8 of UDP and 4 of payload behind 14 of Ethernet.
    assert seen["counters"] == [[8, 8 * 46, 0, 0]] * 2
    assert seen["failure"] is None


def test_nothing_is_left_when_a_run_is_killed(found):
    seen = told(found, "after_sigkill")
    assert seen["during"] == seen["before"] + 2 * 3
    assert seen["after"] == seen["before"]
    assert not seen["link_process_runs"]


def test_a_kernel_that_does_something_else_is_told_from_one_that_obeys(found):
    seen = told(found, "mismatches")
    mismatch = "{}: the kernel's netem is not what was asked: limit asked {}, found {}"
    assert seen["up"] == mismatch.format("client-1 downlink", 11, 12)
    assert seen["shape"] == mismatch.format("client-1 uplink", 12, 13)


def test_nothing_joins_packets(found):
    assert told(found, "aggregating_features") == []


def test_traces_step_in_time(found):
    closing = told(found, "closing")
    assert closing["trace_steps"] > 40
    assert closing["lateness_max_ms"] < 100
