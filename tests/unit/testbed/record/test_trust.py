"""The line on trust, for every pair of verdicts of the links and of the host."""

import re
from typing import Any

import pytest
from msgspec.structs import replace

from testbed.record import host_load, trust
from testbed.record.events import Check, NotProbed, Verdict
from testbed.record.run_summary import Certificate, Host, Judged, Summary
from testbed.record.summary import SummaryBuilder

LINKS = {
    "pass": "all 60 checks hold",
    "fail": "1 of 60 checks do not hold, first client-1 rate up",
    "skipped": "not asked for (--no-calibrate)",
}
HOST = {
    "pass": "client-1 was late for 0.1 % of the rounds' time",
    "fail": "client-2 waited 70 % of the rounds' time for a core (20 clients on 2 cores)",
    "skipped": "no round was finished",
}
LINKS_DOUBT = {
    "fail": "links are not as their profiles say (1 of 60 checks do not hold, first client-1 rate "
    "up)",
    "skipped": "the links were not checked (not asked for (--no-calibrate))",
}
LINKS_CURE = {"fail": "python cli.py calibrate --profile=4g", "skipped": "--calibrate"}
HOST_CURE = {"fail": "--dilation=16"}


def summary(links: Verdict = "pass", host: Verdict = "pass", left: int = 0, **more: Any) -> Summary:
    certificate = Certificate(
        verdict="fail",
        not_probed=[NotProbed("rate", "client-1", "up", "odd")] * left,
        links=Judged(links, LINKS[links]),
        host=Host(host, HOST[host], dilation_needed=16.0),
    )
    facts = {"clients": 20, "profile": "4g", "links": "netem", **more}
    return replace(SummaryBuilder().summary(), fidelity=certificate, **facts)


@pytest.mark.parametrize("host", HOST)
@pytest.mark.parametrize("links", LINKS)
def test_every_pair_of_verdicts(links: Verdict, host: Verdict) -> None:
    found = trust.line(summary(links, host))
    if (links, host) == ("pass", "pass"):
        assert found == "trust: minutes and bytes are those of 20 devices on 4g"
        return
    word = "no" if "fail" in (links, host) else "not known"
    reasons = [LINKS_DOUBT[links]] if links != "pass" else []
    reasons += [HOST[host]] if host != "pass" else []
    cures = [each for each in (LINKS_CURE.get(links), HOST_CURE.get(host)) if each]
    expected = f"trust: bytes yes; minutes {word}: {'; '.join(reasons)}"
    assert found == expected + (f"; type: {' and '.join(cures)}" if cures else "")


def test_links_that_could_not_be_checked_have_no_cure() -> None:
    given = summary("skipped")
    given.fidelity.links.reason = "not probed: the prober was killed by SIGKILL"
    assert trust.line(given).endswith("(not probed: the prober was killed by SIGKILL)")


def test_bytes_of_loopback_links_are_an_estimate_on_the_wire() -> None:
    assert trust.line(replace(summary(), links="loopback")) == (
        "trust: minutes and bytes are those of 20 devices on 4g; those on the wire are an estimate "
        "(loopback links)"
    )
    doubted = trust.line(replace(summary(host="fail"), links="loopback"))
    assert doubted.startswith(
        "trust: bytes yes, but on the wire an estimate (loopback links); minutes no: client-2 "
    )


def test_what_could_not_be_probed_is_counted_where_all_else_holds() -> None:
    left = trust.line(summary(left=2))
    assert left.endswith("on 4g (2 of the links' checks could not be made: see the report)")


def test_one_client_is_one_device() -> None:
    assert trust.line(summary(clients=1)).endswith("are those of 1 device on 4g")


@pytest.mark.parametrize(
    ("profile", "asked"),
    [("4g:12,wifi:5", "4g,wifi"), ("my-own", "YOUR-OWN.toml"), (None, "YOUR-OWN.toml")],
)
def test_links_that_fail_are_to_be_measured_by_their_profiles(
    profile: str | None, asked: str
) -> None:
    assert trust.line(summary("fail", profile=profile)).endswith(f"calibrate --profile={asked}")


def test_for_the_network_between_hosts_there_is_nothing_to_type() -> None:
    own = Check("rate", "client-1", "up", 6.3, 6.0, "Mbit/s", 0.1, False)
    between = Check("hosts' network, hidden", "a to b", "both", 0.0, 209.0, "ms", 22.5, False)
    for missed, cure in (([between], False), ([own, between], True)):
        given = summary("fail")
        given.fidelity.checks = missed
        assert ("type:" in trust.line(given)) == cure


def test_what_to_type_for_the_host_is_said_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_load, "cure", lambda summary: f"wait on {summary.links}")
    assert re.search("type: wait on netem$", trust.line(summary(host="fail")))


def test_a_host_that_does_not_say_what_it_needs_has_no_cure() -> None:
    given = summary(host="fail")
    given.fidelity.host.dilation_needed = None
    assert "type" not in trust.line(given)
