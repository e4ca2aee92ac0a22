"""A link's qdiscs as commands for tc."""

import pytest

from testbed.links.netem import qdisc, tc
from testbed.network.direction import Direction, GilbertElliott


@pytest.mark.parametrize(
    ("direction", "words"),
    [
        (None, "limit 1000000 delay 0ms rate 34359738360bit"),
        (
            Direction(rate_kbit=768, delay_ms=150, queue_ms=200),
            "limit 23 delay 150ms rate 768kbit",
        ),
        (
            Direction(rate_kbit=0.5, delay_ms=0.0015, jitter_ms=0.000001, max_packets=7),
            "limit 7 delay 1500ns 1ns rate 496bit",
        ),
        (
            Direction(delay_ms=1.5, loss_percent=0.2, duplicate_percent=1, corrupt_percent=5),
            "limit 1000000 delay 1500us loss 0.2% duplicate 1% corrupt 5% rate 34359738360bit",
        ),
        (
            Direction(delay_ms=10, reorder_percent=25),
            "limit 1000000 delay 10ms reorder 25% gap 1 rate 34359738360bit",
        ),
        (
            Direction(
                gilbert_elliott=GilbertElliott(
                    good_to_bad_percent=1,
                    bad_to_good_percent=25,
                    bad_loss_percent=80,
                    good_loss_percent=0.5,
                )
            ),
            "limit 1000000 delay 0ms loss gemodel 1% 25% 80% 0.5% rate 34359738360bit",
        ),
        (Direction(outage=True), "limit 1000000 delay 0ms loss 100% rate 34359738360bit"),
    ],
)
def test_parameters_are_in_tcs_words(direction: Direction | None, words: str) -> None:
    assert tc.parameters(qdisc.netem(direction)) == words


@pytest.mark.parametrize("percent", [0.001, 0.2, 1 / 3, 12.5, 99.999])
def test_a_chance_is_the_kernels_again_when_tc_has_read_it(percent: float) -> None:
    chance = qdisc.netem(Direction(loss_percent=percent)).loss
    told = tc.parameters(qdisc.Netem(loss=chance)).split(" loss ")[1].split("%")[0]
    assert round(float(told) / 100 * qdisc.CERTAIN) == chance


def test_a_link_is_made_of_devices_filters_and_qdiscs() -> None:
    up, down = qdisc.Installed(qdisc.netem(None)), qdisc.Installed(qdisc.netem(None), "walk.down")
    redirect = "protocol all prio 1 u32 match u32 0 0 action mirred egress redirect dev"
    netem = "netem limit 1000000 delay 0ms rate 34359738360bit"
    assert list(tc.link(3, (up, down))) == [
        "tc qdisc add dev link3 clsact",
        f"tc filter add dev link3 ingress {redirect} up3",
        f"tc qdisc add dev up3 root handle 1: {netem}",
        f"tc filter add dev link3 egress {redirect} down3",
        "tc qdisc add dev down3 root handle 1: htb default 1",
        "tc class replace dev down3 parent 1: classid 1:1 htb rate RATE  "
        "# every 100 ms that of 'walk.down'",
        f"tc qdisc add dev down3 parent 1:1 handle 2: {netem}",
    ]


def test_a_change_keeps_the_qdisc_where_the_kernel_does() -> None:
    plain = qdisc.Installed(qdisc.netem(Direction(delay_ms=2)))
    traced = qdisc.Installed(qdisc.netem(Direction()), "walk.up")
    (changed,) = tc.change("up1", qdisc.Installed(qdisc.netem(None)), plain)
    assert changed.startswith("tc qdisc change dev up1 root handle 1: netem limit 1000000 delay ")
    assert next(tc.change("up1", plain, traced)) == "tc qdisc del dev up1 root"
    (changed,) = tc.change("up1", traced, traced)
    assert changed.startswith("tc qdisc change dev up1 parent 1:1 handle 2: netem ")
