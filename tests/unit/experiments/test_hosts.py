"""Flags of a run on several hosts: what is taken, and what is refused with its reason."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments import hosts
from testbed.config_error import ConfigError
from testbed.processes import environment
from testbed.run.config import RunConfig
from testbed.run.hosts.far_host import Unusable

SEVERAL = RunConfig(hosts="127.0.0.1,127.0.0.2")


def test_addresses_are_named_in_their_order():
    assert hosts.parsed("10.0.0.1, 10.0.0.2:7401,localhost") == {
        "a": ("10.0.0.1", 7400),
        "b": ("10.0.0.2", 7401),
        "c": ("127.0.0.1", 7400),
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("10.0.0.1", "are 1; name this machine's own address and those of the others"),
        ("10.0.0.1,", "is no address; write ADDRESS or ADDRESS:PORT"),
        ("10.0.0.1,10.0.0.2:x", "'10.0.0.2:x': is no address"),
        ("10.0.0.1,10.0.0.2:" + "9" * 5000, "is no address"),
        ("10.0.0.1,10.0.0.2:70000", "'10.0.0.2:70000': is no address"),
        (f"10.0.0.1,10.0.0.2:{'9' * 5000}", "': is no address"),
        ("10.0.0.1,10.0.0.2:-1", "'10.0.0.2:-1': is no address"),
        ("10.0.0.1,10.0.0.2,10.0.0.2", "b and c are both 10.0.0.2"),
        ("10.0.0.1,no host", "'no host' has no IPv4 address"),
    ],
)
def test_what_is_no_list_of_addresses_is_refused(text: str, reason: str):
    with pytest.raises(ConfigError, match=reason):
        hosts.parsed(text)


def test_a_run_on_several_hosts_goes_by_the_machines_clock_over_userspace_links():
    found = hosts.settled(SEVERAL, {})
    assert (found.links, found.dilation, found.checkpoints) == ("userspace", 1.0, True)
    slower = RunConfig(hosts=SEVERAL.hosts, dilation=3.0)
    assert hosts.settled(slower, {"dilation": 3.0}).dilation == 3.0
    assert hosts.settled(RunConfig(), {}) == RunConfig()


@pytest.mark.parametrize(
    ("more", "flags", "reason"),
    [
        ({"links": "netem"}, {}, "take --links=userspace"),
        ({"links": "loopback"}, {}, "take --links=userspace"),
        ({}, {"dilation": "elastic"}, "take --dilation=1"),
        ({"dilation": "auto"}, {}, "take --dilation=1"),
    ],
)
def test_what_several_hosts_cannot_is_refused(
    more: dict[str, Any], flags: dict[str, Any], reason: str
):
    with pytest.raises(ConfigError, match=reason):
        hosts.settled(RunConfig(hosts=SEVERAL.hosts, **more), flags)


def test_a_placement_without_hosts_is_refused():
    with pytest.raises(ConfigError, match="name several by hosts, or leave it out"):
        hosts.settled(RunConfig(place="server=a"), {})


def test_the_token_is_of_a_file_or_of_the_environment_which_has_it_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "token"
    file.write_text(f"{'x' * 32}\n")
    monkeypatch.setenv(environment.TOKEN, "y" * 40)
    assert hosts.token(file) == b"x" * 32
    assert hosts.token(None) == b"y" * 40
    with pytest.raises(ConfigError, match="WIRETUNE_TOKEN: has no token; make one"):
        hosts.token(None)
    file.write_text("short")
    with pytest.raises(ConfigError, match="has 5 bytes; it must have 32 or more"):
        hosts.token(file)


@pytest.mark.parametrize(
    ("name", "theirs", "reason"),
    [
        ("torch", "1.0", "has torch 1.0, here it is"),
        ("python", "3.0.1", "has python 3.0.1, here it is"),
        ("wiretune", "0.0.1", "has wiretune 0.0.1, here it is"),
        ("msgspec", None, "has msgspec not at all"),
    ],
)
def test_other_software_is_refused(name: str, theirs: str | None, reason: str):
    software = {**hosts.software(), name: theirs}
    far = SimpleNamespace(where="host b at 10.0.0.2:7400", hello=SimpleNamespace(software=software))
    with pytest.raises(Unusable, match=f"host b at 10.0.0.2:7400: {reason}"):
        hosts.refuse_other_software(far)


def test_a_commit_that_one_host_does_not_know_of_is_none_that_differs():
    software = {**hosts.software(), "git": None}
    hosts.refuse_other_software(
        SimpleNamespace(where="host b", hello=SimpleNamespace(software=software))
    )
