"""A link said in a line, in the words of tc and of Mininet."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.config_error import ConfigError
from testbed.network import link_words, profiles
from testbed.network.direction import Direction, GilbertElliott

BURSTS = GilbertElliott(good_to_bad_percent=1, bad_to_good_percent=25)
BOTH = Direction(rate_kbit=10_000, delay_ms=20)


@pytest.mark.parametrize(
    ("text", "up", "down"),
    [
        (
            "down 20mbit up 5mbit delay 20ms loss 0.1%",
            Direction(rate_kbit=5000, delay_ms=20, loss_percent=0.1),
            Direction(rate_kbit=20_000, delay_ms=20, loss_percent=0.1),
        ),
        ("rate 10mbit delay 20ms", BOTH, BOTH),
        ("RATE 10Mbit/s DELAY 0.02s", BOTH, BOTH),
        ("rate 10 mbit delay 20000 us", BOTH, BOTH),
        ("bw=10,delay=20ms", BOTH, BOTH),
        ("bw=10, delay=20ms", BOTH, BOTH),
        (
            "bw=10,delay=5ms,jitter=1ms,loss=1,max_queue_size=100",
            *[Direction(rate_kbit=1e4, delay_ms=5, jitter_ms=1, loss_percent=1, max_packets=100)]
            * 2,
        ),
        (
            "rate 1gbit up delay 30ms 3ms down delay 10ms",
            Direction(rate_kbit=1e6, delay_ms=30, jitter_ms=3),
            Direction(rate_kbit=1e6, delay_ms=10),
        ),
        (
            "up 64kibit loss gemodel 1% 25%",
            Direction(rate_kbit=65.536, gilbert_elliott=BURSTS),
            Direction(gilbert_elliott=BURSTS),
        ),
        ("rate 1e4kbit delay 20ms", BOTH, BOTH),
        ("rate_kbit=10000 delay_ms=20", BOTH, BOTH),
        ("loss 5%", Direction(loss_percent=5), Direction(loss_percent=5)),
    ],
)
def test_words_are_a_link(text: str, up: Direction, down: Direction) -> None:
    assert link_words.read(text) == (up, down)
    said = link_words.say(up, down)
    assert link_words.read(said) == (up, down)
    assert profiles.load(text).name == said


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("rate 10mbit dealy 20ms", "'dealy' is no word of a link: did you mean delay"),
        ("rate 10", "rate '10': must be a rate with its unit, such as 10mbit"),
        ("delay 20", "delay '20': must be a time with its unit, such as 20ms"),
        ("rate 10mbps", "must be 10mbit; tc means bytes by mbps, so 80mbit"),
        ("loss 101%", "up: loss_percent = 101.0: must be at least 0 and below 100 %"),
        ("rate 1mbit rate 2mbit", "rate is said twice for up"),
        ("down 1mbit down 2mbit", "down is said twice for down"),
        ("rate 10mbit delay 20ms 5ms 25%", "'25%' after delay: is one number too many"),
        ("rate nanmbit", "rate 'nanmbit': must be a rate"),
        ("rate 1e400mbit", "must be a finite number"),
        ("limit 1.5", "limit '1.5': must be a whole number of packets"),
        ("rate 1mbit limit 9 queue 5ms", "limit stands instead of queue"),
        ("rate", "there is none of that name"),
        (" =,", "link ' =,': says nothing; say it as"),
        ("delay 5ms jitter 6ms", "jitter_ms = 6.0"),
        ("rate 10mbit up", "up '': must be a rate"),
    ],
)
def test_a_wrong_word_is_told_what_would_be_right(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as refused:
        profiles.load(text)
    assert reason in str(refused.value)


WORD = st.sampled_from([*link_words._WORDS, "up", "down", "gemodel", "random", ","])
VALUE = st.builds(
    lambda number, unit: f"{number}{unit}",
    st.one_of(st.integers(-9, 10**25), st.floats(), st.sampled_from(["", ".", "1e", "1e999"])),
    st.sampled_from(["", "ms", "s", "mbit", "%", "gbit", "bps", "ü", "\0"]),
)


@given(st.lists(st.one_of(WORD, VALUE, st.text(max_size=5)), max_size=8).map(" ".join))
def test_any_line_is_a_link_or_refused(text: str) -> None:
    try:
        up, down = link_words.read(text)
    except ConfigError:
        return
    assert link_words.read(link_words.say(up, down)) == (up, down)
