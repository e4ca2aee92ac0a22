"""Profiles: every shipped file, a user's own, mixes, and what each mistake is told."""

import contextlib
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.config_error import ConfigError
from testbed.network import profiles, traces
from testbed.network.direction import FRAME_BYTES, Direction, GilbertElliott
from testbed.network.profiles import LinkProfile, load, names, parse_mix
from testbed.network.schedule import State

EXPECTED = (
    *("ethernet", "wifi", "5g", "4g", "3g", "2g", "dsl", "cable", "starlink", "geo-satellite"),
    *("unlimited", "wpt-3g-slow", "devtools-slow-4g", "lighthouse-slow-4g", "atc-2g-rural"),
    *("loadero-4g", "lte-m", "nb-iot", "ble-1m", "lora-sf7"),
)

GOOD = """\
title = "Mine"
summary = "A link of my own."
sources = ["measured at home, 2025-01-01"]

[up]
rate_kbit = 1000

[down]
rate_kbit = 8000
delay_ms = 20

[provenance]
up.rate_kbit = "sourced: speed test"
down.rate_kbit = "sourced: speed test"
down.delay_ms = "assumed: a guess"
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    return path


def refusal(path: Path, old: str, new: str) -> str:
    """The text that refuses GOOD with ``old`` made ``new``; it must name the file."""
    assert old in GOOD
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    return text


# What ships


@pytest.mark.parametrize("name", names())
def test_shipped_profile_is_whole(name: str) -> None:
    profile = load(name)
    assert profile.name == name
    assert profile.title and profile.summary
    assert all(len(source) > 10 for source in profile.sources) and profile.sources
    for direction in ("up", "down"):
        link = getattr(profile, direction)
        for field in link.__struct_fields__:
            if getattr(link, field) != getattr(Direction(), field):
                assert f"{direction}.{field}" in profile.provenance
        if link.rate_kbit is not None:
            # TCP starts with 10 segments: a smaller buffer would drop at every start
            assert link.rate_kbit * link.queue_ms / (8 * FRAME_BYTES) >= 15.9
    assert not profile.composite or len(profile.sources) > 1


def test_the_expected_profiles_ship() -> None:
    assert set(EXPECTED) <= set(names())
    assert names() == sorted(names())


def test_default_4g_is_as_designed() -> None:
    profile = load("4g")
    assert (profile.down.rate_kbit, profile.up.rate_kbit, profile.rtt_ms) == (21300, 6300, 55)
    assert (profile.down.jitter_ms, profile.up.jitter_ms) == (5, 15)
    assert profile.down.mean_loss_percent == profile.up.mean_loss_percent == 0
    assert profile.composite


def test_4g_loses_packets_in_bursts_where_that_is_asked_for() -> None:
    plain, lossy = load("4g"), load("4g-lossy")
    for way in ("up", "down"):
        direction = getattr(lossy, way)
        assert direction.mean_loss_percent == pytest.approx(0.2, rel=1e-3)
        calm = msgspec.structs.replace(direction, gilbert_elliott=None)
        assert calm == getattr(plain, way)


def test_delays_that_a_source_gives_apart_stay_apart() -> None:
    profile = load("atc-edge-lossy")
    assert (profile.down.delay_ms, profile.up.delay_ms) == (400, 440)
    assert profile.rtt_ms == 840


def test_unlimited_has_no_numbers() -> None:
    profile = load("unlimited")
    assert profile.up == profile.down == Direction()
    assert profile.up.limit_packets is None and profile.up.ideal_goodput_kbit is None


def test_import_is_cheap() -> None:
    heavy = ["torch", "numpy", "transformers", "zmq", "click", "testbed.transport.wire"]
    code = f"import sys, testbed.network.profiles; print([m for m in {heavy} if m in sys.modules])"
    root = Path(profiles.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


# Made in code


def test_profile_without_a_file() -> None:
    profile = LinkProfile(name="test", up=Direction(delay_ms=3), down=Direction(delay_ms=4))
    assert profile.rtt_ms == 7
    assert profile.sources == () and profile.provenance == {}
    assert msgspec.convert(msgspec.to_builtins(profile), LinkProfile) == profile


# A user's own file


MORE = """\
title = "More"
summary = "Every way to say it."
sources = ["nobody"]
[up]
trace = "x.up"
gilbert_elliott = { good_to_bad_percent = 1, bad_to_good_percent = 25, bad_loss_percent = 50 }
max_queue_size = 60
[down]
bw = 8
delay = "20ms"
jitter = "1ms"
reorder_percent = 1
[[schedule]]
at_s = 5
up = { bw = 0.5 }
[[schedule]]
at_s = 9
outage_s = 1
[provenance]
schedule = "assumed: for a test"
up.trace = "assumed: for a test"
up.gilbert_elliott = "assumed: for a test"
up.max_packets = "assumed: for a test"
down = { bw = "assumed: for a test", delay_ms = "assumed: for a test", jitter = "assumed: x", \
reorder_percent = "assumed: x" }
"""


@pytest.fixture
def more(tmp_path: Path) -> Path:
    (tmp_path / "x.up").write_text("5\n10\n")
    path = tmp_path / "more.toml"
    path.write_text(MORE)
    return path


def test_own_file_with_everything(more: Path) -> None:
    profile = load(more)
    bursts = GilbertElliott(good_to_bad_percent=1, bad_to_good_percent=25, bad_loss_percent=50)
    up = Direction(trace=str(more.parent / "x.up"), gilbert_elliott=bursts, max_packets=60)
    down = Direction(rate_kbit=8000, delay_ms=20, jitter_ms=1, reorder_percent=1)
    assert (profile.up, profile.down) == (up, down)
    step = Direction(rate_kbit=500, gilbert_elliott=bursts, max_packets=60)
    outage = [msgspec.structs.replace(direction, outage=True) for direction in (step, down)]
    assert profile.schedule == (State(5, step, down), State(9, *outage), State(10, step, down))
    assert profile.provenance.keys() == {
        *("schedule", "up.trace", "up.gilbert_elliott", "up.max_packets", "down.rate_kbit"),
        *("down.delay_ms", "down.jitter_ms", "down.reorder_percent"),
    }


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("at_s = 9", "at_s = 4", ("schedule entry 2: at_s = 4: is before 5 of entry 1",)),
        ("bw = 0.5", "bw = -1", ("schedule entry 1: up.bw = -1: is rate_kbit = -1000: must",)),
        ("outage_s = 1", "outage_s = 1\nclients = [1]", ("entry 2: clients = [1]: is only for",)),
        ('"x.up"', '"y.up"', ("up.trace ", "y.up: cannot read it: No such file")),
        ('"20ms"', "20", ('down.delay = 20: must be a text with its unit (us, ms, s): "20ms"',)),
        ("bw = 8", "bw = 8\nrate_kbit = 8000", ("down.rate_kbit = 8000: says the same as bw",)),
        ("bw = 8", "bw = 8\noutage = true", ("down.outage = True: does not belong here",)),
        ("_percent = 25,", "_percent = 0,", ("gilbert_elliott.bad_to_good_percent = 0: must",)),
    ],
)
def test_own_file_with_everything_and_a_mistake(
    more: Path, old: str, new: str, parts: tuple[str, ...]
) -> None:
    assert MORE.count(old) == 1
    more.write_text(MORE.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load(more)
    assert str(caught.value).startswith(f"{more}: ")
    for part in parts:
        assert part in str(caught.value)


def test_an_empty_trace_is_refused_with_its_path(more: Path) -> None:
    (more.parent / "x.up").write_text("")
    traces.load.cache_clear()
    with pytest.raises(ConfigError, match=r"more\.toml: up\.trace .*x\.up: is empty; it needs one"):
        load(more)


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ('title = "Mine"', "", ("title = None", "(it is missing)")),
        ('sources = ["measured at home, 2025-01-01"]', "", ("sources = None", "it is missing")),
        ('["measured at home, 2025-01-01"]', "[]", ("sources = []", "must name one at least")),
        (
            'down.delay_ms = "assumed: a guess"',
            "",
            ("down.delay_ms = 20: has no provenance", '"assumed: why"'),
        ),
        (GOOD[GOOD.index("[provenance]") :], "", ("provenance = None", "(it is missing)")),
    ],
)
def test_what_ships_says_where_it_is_from_and_an_own_file_need_not(
    mine: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, parts: tuple[str, ...]
) -> None:
    assert old in GOOD
    mine.write_text(GOOD.replace(old, new))
    assert load(mine).down.delay_ms == 20
    monkeypatch.setattr(profiles, "PROFILE_DIR", mine.parent)
    with pytest.raises(ConfigError) as caught:
        load("mine")
    for part in parts:
        assert part in str(caught.value)


def test_numbers_alone_are_a_profile(tmp_path: Path) -> None:
    path = tmp_path / "least.toml"
    path.write_text("[up]\nrate_kbit = 1000\n[down]\n")
    found = load(path)
    assert (found.up, found.down) == (Direction(rate_kbit=1000), Direction())
    path.write_bytes(b"\xef\xbb\xbf[up]\r\nrate_kbit = 1000\r\n[down]\r\n")
    assert load(path) == found


def test_a_name_says_which_link_a_file_is(tmp_path: Path) -> None:
    found = {}
    for place, rate in (("a", 1000), ("b", 2000), ("c", 2000)):
        (tmp_path / place).mkdir()
        path = tmp_path / place / "site.toml"
        path.write_text(f"title = '{place}'\n[up]\nrate_kbit = {rate}\n[down]\n")
        found[place] = load(path).name
    assert found["a"] != found["b"] == found["c"]
    assert all(name.startswith("site@") for name in found.values())


def test_own_file(mine: Path) -> None:
    profile = load(mine)
    assert profile == load(str(mine))
    assert profile.name.startswith("mine@")
    assert profile.up == Direction(rate_kbit=1000)
    assert profile.provenance["down.delay_ms"] == "assumed: a guess"


def test_own_file_by_its_bare_name(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mine.parent)
    assert load("mine.toml").title == "Mine"


def test_quoted_provenance_keys_are_the_same(mine: Path) -> None:
    mine.write_text(GOOD.replace("down.delay_ms =", '"down.delay_ms" ='))
    assert load(mine).provenance["down.delay_ms"] == "assumed: a guess"


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        (
            "rate_kbit = 8000",
            "rate_kbit = -8000",
            ("down.rate_kbit = -8000: must be above 0 kbit/s",),
        ),
        ("rate_kbit = 8000", "rate_kbit = true", ("down.rate_kbit = True: must be a finite",)),
        ("rate_kbit = 8000", "rate_kbit = nan", ("down.rate_kbit = nan: must be a finite",)),
        ("rate_kbit = 8000", 'rate_kbit = "8M"', ("down.rate_kbit = '8M': must be a finite",)),
        ("delay_ms = 20", "delay_ms = 20\njitter_ms = 21", ("down.jitter_ms = 21", "20")),
        ("rate_kbit = 8000", "rate = 8000", ("down.rate = 8000", "did you mean rate_kbit")),
        ("rate_kbit = 8000", "rate_mbit = 8", ("down.rate_mbit = 8", "did you mean rate_kbit?")),
        ("delay_ms = 20", "delay = 20", ("down.delay = 20: must be", 'us, ms, s): "20ms"')),
        ("delay_ms = 20", "los = 1", ("down.los = 1", "did you mean loss")),
        ("delay_ms = 20", "mtu = 9000", ("down.mtu = 9000", "It is one of rate_kbit, trace")),
        ("title =", "titel =", ("titel = 'Mine'", "did you mean title?")),
        ('title = "Mine"', 'name = "Mine"', ("name = 'Mine'", "is no key here")),
        ('title = "Mine"', "title = 4", ("title = 4: must be some text",)),
        ('title = "Mine"', 'title = "Mine"\ncomposite = 1', ("composite = 1", "true or false")),
        ('["measured at home, 2025-01-01"]', '"me"', ("sources = 'me'", "list of texts")),
        ('["measured at home, 2025-01-01"]', '[" "]', ("sources = [' ']", "list of texts")),
        ("[up]\nrate_kbit = 1000", "", ("up = None", "must be a table [up] (it is missing)")),
        ("[up]\nrate_kbit = 1000", "up = 1000", ("up = 1000", "must be a table [up]")),
        (
            "down.delay_ms =",
            "down.delai_ms =",
            ("provenance.down.delai_ms = 'assumed: a guess'", "did you mean down.delay_ms"),
        ),
        ("down.delay_ms =", "sideways =", ("provenance.sideways", "It is one of up.rate_kbit")),
        ("assumed: a guess", "guessed: a guess", ("delay_ms = 'guessed: a guess'", "sourced")),
        ("assumed: a guess", "assumed:", ("provenance.down.delay_ms = 'assumed:'", "why")),
        ('"assumed: a guess"', "1", ("provenance.down.delay_ms = 1", "must be one of")),
        ("[up]", "[up", ("is not TOML", "line 5")),
        ("[down]", "[up]", ("is not TOML",)),
    ],
)
def test_own_file_with_a_mistake(mine: Path, old: str, new: str, parts: tuple[str, ...]) -> None:
    text = refusal(mine, old, new)
    for part in parts:
        assert part in text


def test_file_that_is_not_text(mine: Path) -> None:
    mine.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"mine\.toml: is UTF-16; save it as UTF-8"):
        load(mine)


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot read it: No such file"):
        load(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load(f"{tmp_path}/")


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("4gg", "4g"), ("4G", "4g"), ("wfi", "wifi"), ("dialup", "wpt-dialup"), ("lte", "wpt-lte")],
)
def test_unknown_name_is_told_the_closest(wrong: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(wrong)
    text = str(caught.value)
    assert f"profile {wrong!r}: there is none of that name: did you mean " in text
    assert meant in text.split("?")[0]
    assert ", ".join(names()) in text


def test_name_like_nothing_gets_the_list_only() -> None:
    with pytest.raises(ConfigError) as caught:
        load("zzzzzz")
    assert "did you mean" not in str(caught.value) and ", wifi" in str(caught.value)


# Mixes


def test_one_name_is_for_all() -> None:
    assert [p.name for p in parse_mix("4g", 3)] == ["4g"] * 3
    assert [p.name for p in parse_mix(" 4g ", None, default=2)] == ["4g"] * 2
    assert len(parse_mix("4g")) == 1


def test_counts_are_laid_out_in_order() -> None:
    mix = [p.name for p in parse_mix("4g:12,wifi:5, 3g : 3")]
    assert mix == ["4g"] * 12 + ["wifi"] * 5 + ["3g"] * 3
    assert [p.name for p in parse_mix("4g:12,wifi:5,3g:3", 20)] == mix
    assert [p.name for p in parse_mix("4g:1,wifi:1,4g:2", 4)] == ["4g", "wifi", "4g", "4g"]
    assert len(parse_mix("4g:7", default=2)) == 7


def test_mix_takes_files(mine: Path) -> None:
    assert [p.name[:5] for p in parse_mix(f"{mine}:2,4g:1")] == ["mine@", "mine@", "4g"]


@pytest.mark.parametrize(
    ("text", "clients", "parts"),
    [
        ("4g:12,wifi:5,3g:3", 10, ("12 + 5 + 3 = 20 clients", "clients = 10")),
        ("4g:12", 10, ("give 12 clients", "clients = 10")),
        ("4g:x", None, ("'4g:x'", "the count 'x' must be a whole number")),
        ("4g:1.5", None, ("the count '1.5'",)),
        ("4g:0", None, ("the count '0'", "at least 1")),
        ("4g:-3", None, ("the count '-3'", "at least 1")),
        ("4g:1_0", None, ("the count '1_0'",)),
        ("4g:٣", None, ("must be a whole number",)),
        ("4g:", None, ("the count ''",)),
        ("4g:" + "9" * 20, None, (f"the count '{'9' * 20}'", "at most 4096")),
        ("4g:" + "9" * 5000, None, ("must be a whole number", "at most 4096")),
        ("", None, ("profile mix ''", "empty piece", "NAME:COUNT")),
        ("4g:1,,wifi:2", None, ("empty piece",)),
        ("4g:1,", None, ("empty piece",)),
        (":3", None, ("':3' lacks a name", "'4g:3'")),
        ("4g,wifi", None, ("'4g' lacks a count", "'4g:3'")),
        ("4g:3,wifi", 5, ("'wifi' lacks a count", "'wifi:3'")),
        ("4gg:3", None, ("profile '4gg'", "did you mean 4g")),
        ("4g:6000,wifi:6000", None, ("6000 + 6000 = 12000", "at most 4096")),
        ("4g", 0, ("clients = 0: must be 1 to 4096",)),
        ("4g", -1, ("clients = -1",)),
    ],
)
def test_mix_refuses(text: str, clients: int | None, parts: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_mix(text, clients)
    for part in parts:
        assert part in str(caught.value)


@settings(derandomize=True, deadline=None)
@given(st.text("34g:, -x.\0é\ud800", max_size=12), st.none() | st.integers(-2, 50))
def test_any_text_is_a_mix_or_a_config_error(text: str, clients: int | None) -> None:
    with contextlib.suppress(ConfigError):
        assert parse_mix(text, clients)
    with contextlib.suppress(ConfigError):
        assert parse_mix(f"./{text}.toml", clients)
