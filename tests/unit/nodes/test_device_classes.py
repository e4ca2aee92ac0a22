"""Rates of devices, and which client has which."""

import pytest

from nodes.device_classes import ASSUMED_SHARE, CLASSES, flops_per_s, of_clients
from testbed.config_error import ConfigError


def test_every_class_says_where_its_rate_is_from() -> None:
    assert set(CLASSES) == {"phone", "pi", "jetson", "laptop", "server"}
    for name, each in CLASSES.items():
        assert name == each.name
        assert each.source.startswith(("sourced: ", "derived: "))
        assert flops_per_s(name) == each.peak_gflops * ASSUMED_SHARE * 1e9
    ordered = sorted(CLASSES, key=flops_per_s)
    assert ordered == ["pi", "jetson", "laptop", "phone", "server"]


def test_a_number_is_a_rate() -> None:
    assert flops_per_s("2.5") == 2.5e9


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("phon", "'phon': unknown: did you mean phone.* Known: phone, pi"),
        ("0", "must be from 1e-06"),
        ("-3", "must be from 1e-06"),
        ("nan", "must be from 1e-06"),
        ("inf", "must be from 1e-06"),
        ("phone:2,pi", "'pi' must be a class and how many clients"),
        ("phone:0,pi:3", "'phone:0' must be"),
        ("phone:" + "9" * 5000, "must be a class and how many"),
        ("1_0", "'1_0': unknown"),
        ("٣", "'٣': unknown"),
        ("phone:٢,pi:1", "'phone:٢' must be"),
        ("phone:2_0", "'phone:2_0' must be"),
        ("phone:2,toaster:1", "'toaster': unknown"),
        ("phone:2,pi:2", "is for 4 clients, the run has 3"),
    ],
)
def test_what_is_no_rate_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        of_clients(text, 3)


def test_a_mix_goes_to_the_clients_in_order() -> None:
    assert of_clients("pi", 2) == ["pi", "pi"]
    assert of_clients("phone:1, 80:2", 3) == ["phone", "80", "80"]
