"""What is planned for a profile: that it fits the time, the line and its queue."""

import itertools
import math

import pytest
from msgspec.structs import replace

from testbed.calibration import datagrams, sizing
from testbed.calibration.measure import MOST_TOGETHER, TOGETHER_KBIT, grouped, named
from testbed.calibration.plan import schedule
from testbed.calibration.probes import STAGES, Pings, Schedule, Stream, Transfer
from testbed.config_error import ConfigError
from testbed.network import profiles
from testbed.network.direction import FRAME_BYTES, Direction, GilbertElliott
from testbed.network.profiles import LinkProfile
from testbed.probing.probeable import is_too_fast

EVERY = [profiles.load(name) for name in profiles.names()]
LONG_S = 3600.0
LINE = Direction(rate_kbit=4000, delay_ms=20, jitter_ms=5)
LINK = LinkProfile(name="test", up=LINE, down=Direction(rate_kbit=8000, delay_ms=10))


def pings_of(plan: Schedule) -> Pings:
    return next(one for one in plan.probes() if isinstance(one, Pings))


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("seconds", [5, 12, 30, 90])
def test_no_plan_takes_longer_than_it_may(seconds: float, streams: bool) -> None:
    for profile in EVERY:
        plan = schedule(profile, seconds, streams)
        assert plan.seconds <= seconds + 1e-6, profile.name


def test_given_time_every_gate_of_every_profile_is_measured() -> None:
    for profile in EVERY:
        left_out = schedule(profile, LONG_S).left_out
        for purpose, reason in left_out.items():
            proved = purpose.startswith("rate ") and "goodput proves the rate" in reason
            assert proved or "has no rate" in reason, profile.name


@pytest.mark.parametrize("profile", EVERY, ids=lambda profile: profile.name)
def test_what_is_left_out_says_how_long_would_do(profile: LinkProfile) -> None:
    for seconds in (5, 12, 40):
        for purpose, reason in schedule(profile, seconds).left_out.items():
            if "--seconds=" in reason:
                enough_s = int(reason.partition("--seconds=")[2].split()[0])
                assert enough_s > seconds
                assert purpose not in schedule(profile, enough_s).left_out


def test_the_quick_probes_come_first() -> None:
    plan = schedule(profiles.load("3g"), 8)
    assert {step.stage for step in plan.steps} == {"delay", "rate", "together"}
    assert set(plan.left_out) == {"goodput", "shares up", "shares down"}
    assert "takes 7.5" in plan.left_out["goodput"]


def test_more_time_makes_larger_samples_up_to_what_is_enough() -> None:
    counts = []
    for seconds in (26, 40, LONG_S):
        plan = schedule(profiles.load("3g"), seconds)
        counts.append(plan.stream("shares", 0, "up").count)
    assert sizing.LEAST_COUNTED <= counts[0] < counts[1] < counts[2] == sizing.COUNTED
    assert pings_of(schedule(LINK, LONG_S)).count == 200
    assert pings_of(schedule(profiles.load("dsl"), LONG_S)).count == 100


def test_pings_are_so_far_apart_that_jitter_cannot_make_them_meet() -> None:
    assert pings_of(schedule(LINK, 60)).gap_s >= 2 * 0.005
    both = replace(LINK, down=replace(LINK.down, jitter_ms=8))
    assert pings_of(schedule(both, 60)).gap_s >= 2 * (0.005 + 0.008)


@pytest.mark.parametrize("profile", EVERY, ids=lambda profile: profile.name)
def test_packets_that_are_counted_find_room(profile: LinkProfile) -> None:
    for way in ("up", "down"):
        direction: Direction = getattr(profile, way)
        stream = schedule(profile, LONG_S).stream("shares", 0, way)
        # So few bursts as a profile has take more packets.
        assert stream.count == sizing.COUNTED or direction.gilbert_elliott is not None
        if direction.rate_kbit is not None:
            frame_bits = 8 * (stream.packet_bytes + 14)
            assert stream.per_second * frame_bits <= 0.5 * 1000 * direction.rate_kbit * 1.0001
            flying_s = (direction.delay_ms + direction.jitter_ms) / 1000
            assert direction.limit_packets is not None
            assert stream.per_second * flying_s <= direction.limit_packets / 2


@pytest.mark.parametrize("profile", EVERY, ids=lambda profile: profile.name)
def test_a_line_is_filled_beyond_its_queue_and_kept_full(profile: LinkProfile) -> None:
    for way in ("up", "down"):
        direction: Direction = getattr(profile, way)
        if direction.rate_kbit is None or is_too_fast(direction):
            continue
        stream = schedule(profile, LONG_S).stream("rate", 0, way)
        assert direction.limit_packets is not None
        line_per_s = 1000 * direction.rate_kbit / (8 * FRAME_BYTES)
        taken_per_s = stream.per_second * (1 - direction.mean_loss_percent / 100)
        sending_s = stream.paced / stream.per_second
        if direction.rate_kbit > sizing.FAST_KBIT:
            assert stream.fill == 0
            assert taken_per_s == pytest.approx(1.25 * line_per_s)
            full_after_s = direction.limit_packets / (taken_per_s - line_per_s)
            assert sending_s == pytest.approx(full_after_s + 0.5, rel=0.01)
        else:
            assert direction.limit_packets < stream.fill <= sizing.MOST_FILL
            assert taken_per_s == pytest.approx(1.5 * line_per_s)
            assert sending_s + direction.limit_packets / line_per_s >= sizing.SATURATED_S - 1e-9
            # The steady queue shows only once the first packet is through.
            assert sending_s >= direction.delay_ms / 1000 + 4 / line_per_s - 1e-9
        # What is still in the line must not run into the next step.
        assert stream.settle_s >= direction.delay_ms / 1000 + direction.limit_packets / line_per_s


def test_a_line_too_fast_for_single_packets_is_filled_by_tcp_alone() -> None:
    plan = schedule(profiles.load("ethernet"), LONG_S)
    assert {one.purpose for one in plan.probes() if isinstance(one, Stream)} == {"shares"}
    assert {step.stage for step in plan.steps if step.stage.startswith("together")} == {
        "together up", "together down",
    }  # fmt: skip
    line_kbit = profiles.load("ethernet").up.ideal_goodput_kbit
    for client in (0, 1):
        assert plan.transfer("together", client, "up").pace_kbit == 1.05 * line_kbit
    assert plan.tcp_stages == {"goodput up", "goodput down", "together up", "together down"}
    # One such line can be filled packet by packet, and two at once cannot.
    phone = schedule(profiles.load("5g"), LONG_S)
    assert phone.stream("rate", 0, "down").purpose == "rate" and not phone.left_out
    assert phone.transfer("together", 1, "down").pace_kbit and phone.stream("together", 1, "up")


def test_a_line_that_neither_packets_nor_tcp_can_fill_is_left_out_with_both_reasons() -> None:
    lossy = Direction(rate_kbit=1_000_000, delay_ms=1, loss_percent=0.1)
    plan = schedule(LinkProfile(name="lossy", up=lossy, down=LINE), LONG_S)
    assert plan.why_not("rate", "up") == (
        "82563 frames a second are too many to be sent one by one, and TCP is bounded by loss"
    )
    assert "bounded by loss" in str(plan.why_not("together", "up"))
    assert plan.why_not("rate", "down") is plan.why_not("together", "down") is None


class Clock:
    """A clock that a sender sleeps by, and that stands still for it now and then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, held_up: dict[int, float]) -> None:
        self.now_s = 0.0
        self._sleeps = 0
        self._held_up = held_up
        monkeypatch.setattr(datagrams.time, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(datagrams.time, "sleep", self._sleep)

    def _sleep(self, seconds: float) -> None:
        self._sleeps += 1
        self.now_s += seconds + self._held_up.get(self._sleeps, 0.0)


def test_a_sender_of_packets_to_be_counted_skips_the_time_that_it_was_held_up(monkeypatch) -> None:
    clock = Clock(monkeypatch, {10: 0.5, 20: 0.003})
    stream = sizing.counting("up", LINE)
    sent_s = [clock.now_s for _ in datagrams._batches(stream)]
    assert len(sent_s) == stream.count
    gaps_s = [after - before for before, after in itertools.pairwise(sent_s)]
    assert min(gaps_s) >= 0.999 / stream.per_second


def test_a_lossy_line_is_sent_what_it_loses_as_well() -> None:
    lossy = replace(LINE, loss_percent=50)
    usual, doubled = (sizing.saturating("rate", 0, "up", one) for one in (LINE, lossy))
    assert doubled.fill - 8 >= 2 * (usual.fill - 9)
    assert doubled.per_second == pytest.approx(2 * usual.per_second)


def test_light_probes_run_side_by_side_and_heavy_ones_do_not() -> None:
    light = {step.stage for step in schedule(LINK, LONG_S).steps}
    assert light == {"delay", "rate", "shares", "goodput", "together"}
    heavy = [step.stage for step in schedule(profiles.load("starlink"), LONG_S).steps]
    assert heavy == sorted(heavy, key=STAGES.index)
    assert {"rate up", "rate down", "together up", "together down"} <= set(heavy)
    mixed = {step.stage for step in schedule(profiles.load("4g"), LONG_S).steps}
    assert "rate" in mixed and "together up" in mixed


def test_two_at_once_are_the_profiles_two_clients() -> None:
    plan = schedule(LINK, LONG_S)
    together = [
        one for one in plan.probes() if isinstance(one, Stream) and one.purpose == "together"
    ]
    assert sorted((one.client, one.way) for one in together) == [
        (0, "down"), (0, "up"), (1, "down"), (1, "up"),
    ]  # fmt: skip


def transfers(profile: LinkProfile, streams: bool = False) -> dict[str, Transfer]:
    plan = schedule(profile, LONG_S, streams)
    found = (one for one in plan.probes() if isinstance(one, Transfer))
    return {one.way: one for one in found if one.purpose == "goodput"}


@pytest.mark.parametrize("profile", EVERY, ids=lambda profile: profile.name)
def test_tcp_is_paced_so_that_it_fills_the_line_and_not_the_queue(profile: LinkProfile) -> None:
    for way, one in transfers(profile).items():
        direction: Direction = getattr(profile, way)
        if direction.mean_loss_percent:
            assert one.pace_kbit is None
            continue
        assert one.pace_kbit is not None and direction.ideal_goodput_kbit is not None
        above = one.pace_kbit / direction.ideal_goodput_kbit - 1
        assert 0.02 < above <= 0.05 + 1e-9
        assert one.lead_s >= 12 * profile.rtt_ms / 1000
        assert one.window_s >= 2 * profile.rtt_ms / 1000


def test_behind_a_short_queue_tcp_never_overruns_it() -> None:
    short = replace(LINE, jitter_ms=0, delay_ms=200, queue_ms=20)
    one = transfers(LinkProfile(name="short", up=short))["up"]
    assert one.pace_kbit is not None and short.ideal_goodput_kbit is not None
    above = one.pace_kbit / short.ideal_goodput_kbit - 1
    assert 0 < above * (one.lead_s + one.window_s) < 0.020


def test_each_direction_of_tcp_has_a_link_of_its_own() -> None:
    assert [(one.way, one.client) for one in transfers(LINK).values()] == [("up", 0), ("down", 1)]
    assert all(one.pace_kbit is None for one in transfers(LINK, streams=True).values())


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({}, 1000),
        ({"loss_percent": 0.5}, 4000),
        ({"loss_percent": 50}, 1000),
        ({"duplicate_percent": 0.1}, 20_000),
    ],
)
def test_a_share_is_told_by_twenty_events_at_least(fields: dict[str, float], count: int) -> None:
    assert sizing.least_counted(replace(LINE, **fields)) == count


def test_a_chain_is_told_by_twenty_bursts() -> None:
    chain = GilbertElliott(good_to_bad_percent=0.1, bad_to_good_percent=10, bad_loss_percent=100)
    count = sizing.least_counted(replace(LINE, gilbert_elliott=chain))
    assert count == math.ceil(20 / (0.001 * 0.1 / 0.101))


def test_a_limit_below_the_delay_line_is_no_queue() -> None:
    reason = sizing.why_not_filled(Direction(rate_kbit=5000, delay_ms=50, max_packets=10))
    assert reason is not None and "max_packets = 10" in reason
    plan = schedule(
        LinkProfile(name="x", up=Direction(rate_kbit=5000, delay_ms=50, max_packets=10)), 60
    )
    assert plan.why_not("rate", "up") == plan.why_not("goodput", "up") == reason
    assert plan.why_not("shares", "up") is None


def test_a_trace_is_measured_over_whole_periods_or_not_at_all(tmp_path) -> None:
    file = tmp_path / "slow.trace"
    file.write_text("\n".join(str(ms) for ms in range(10, 3001, 10)))
    link = LinkProfile(name="trace", up=Direction(trace=str(file)))
    stream = schedule(link, LONG_S).stream("rate", 0, "up")
    assert stream.paced / stream.per_second == pytest.approx(3.0, rel=0.01)
    assert transfers(link)["up"].window_s == pytest.approx(3.0)
    file = tmp_path / "long.trace"
    file.write_text("\n".join(str(ms) for ms in range(10, 100_001, 10)))
    link = LinkProfile(name="trace", up=Direction(trace=str(file)))
    assert "--seconds=" in str(schedule(link, 60).why_not("rate", "up"))


def test_profiles_share_a_network_as_long_as_the_machine_can_carry_them() -> None:
    plans = [schedule(profile, 40) for profile in EVERY]
    groups = grouped(plans)
    assert sorted(one.profile.name for group in groups for one in group) == profiles.names()
    for group in groups:
        assert len(group) <= MOST_TOGETHER
        ways = [way for one in group for way in (one.profile.up, one.profile.down)]
        if len(group) > 1:
            assert sizing.CLIENTS * sum(way.line_kbit or math.inf for way in ways) <= TOGETHER_KBIT
    assert len(groups) < len(plans) / 2


def test_profiles_are_named_once_each_in_any_of_the_ways() -> None:
    assert [one.name for one in named(("4g,wifi", "3g", "4g"))] == ["4g", "wifi", "3g"]
    assert [one.name for one in named(("4g:12, wifi:5",))] == ["4g", "wifi"]
    assert [one.name for one in named(("all",))] == profiles.names()
    with pytest.raises(ConfigError, match="did you mean 4g"):
        named(("4gg",))
    with pytest.raises(ConfigError):
        named(("4g,",))


def test_two_files_of_one_name_are_told_apart(tmp_path) -> None:
    text = (profiles.PROFILE_DIR / "3g.toml").read_text()
    for place, rate in (("a", "768"), ("b", "769"), ("c", "769")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "3g.toml").write_text(text.replace("768", rate))
    found = named(("3g", *(f"{tmp_path}/{place}/3g.toml" for place in "abc")))
    assert [one.up.rate_kbit for one in found] == [768, 768, 769]
    assert len({one.name for one in found}) == 3 and found[0].name == "3g"
