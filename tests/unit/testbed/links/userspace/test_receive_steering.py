"""Where nodes' kernels receive: the rule, and how a set of cores is written."""

import os

import pytest

from testbed.links.userspace import receive_steering
from testbed.links.userspace.batching import MOST_FRAMES_PER_S
from testbed.network.direction import FRAME_BYTES, Direction
from testbed.network.profiles import LinkProfile
from testbed.network.topology import plan

MOST_KBIT = MOST_FRAMES_PER_S * 8 * FRAME_BYTES / 1000


def profile(up_kbit: float | None, down_kbit: float | None) -> LinkProfile:
    return LinkProfile(
        name="test", up=Direction(rate_kbit=up_kbit), down=Direction(rate_kbit=down_kbit)
    )


@pytest.mark.parametrize(
    ("up", "down", "clients", "wanted"),
    [
        (1, 0.9, 1, False),
        (1.1, 0.1, 1, True),
        (0.1, 1.1, 1, True),
        (0.3, 0.3, 3, False),
        (0.3, 0.4, 3, True),
        (None, 0.1, 1, True),
    ],
)
def test_it_is_wanted_where_one_direction_of_all_links_is_more_than_a_core_can(
    up, down, clients, wanted
):
    rates = [None if share is None else share * MOST_KBIT for share in (up, down)]
    assert receive_steering.is_wanted(plan([profile(*rates)] * clients)) is wanted


def test_the_servers_line_does_not_count():
    slow = profile(100, 100)
    assert not receive_steering.is_wanted(plan([slow], profile(None, None)))
    assert not receive_steering.is_wanted(plan([slow]))


@pytest.mark.parametrize("process", range(6))
def test_one_core_is_this_processs_and_the_others_the_nodes(monkeypatch, process):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5, 2, 7}, raising=False)
    monkeypatch.setattr(os, "getpid", lambda: process)
    own, others = receive_steering.choose_cores(plan([profile(None, None)]))
    assert own == (2, 5, 7)[process % 3]
    assert others == {2, 5, 7} - {own}


def test_slow_links_and_a_single_core_leave_all_as_it_is(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    assert receive_steering.choose_cores(plan([profile(100, 100)])) is None
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    assert receive_steering.choose_cores(plan([profile(None, None)])) is None


@pytest.mark.parametrize(
    ("cores", "text"),
    [
        ({1}, "00000002"),
        ({0, 1, 2, 3}, "0000000f"),
        ({31, 32}, "00000001,80000000"),
        ({0, 100}, "00000010,00000000,00000000,00000001"),
    ],
)
def test_a_mask_is_written_as_the_kernel_reads_it(cores, text):
    assert receive_steering.mask(cores) == text
