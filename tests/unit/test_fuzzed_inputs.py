"""Mutated inputs of every kind but the wire's: each is taken or refused in its own words.

A corpus of whole ones, each changed by flipped bits, parts cut, doubled and put in from another.
"""

import contextlib
import hashlib
import io
import json
import os
import random
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import made_run
import msgspec
import pytest
import torch
from mutations import mutated

from nodes.checkpoint import state_file
from testbed.config_error import ConfigError
from testbed.exec import config as configuration
from testbed.exec.config import programs_of
from testbed.network import availability, link_words, positions, profiles, schedule, traces
from testbed.network.topology import plan
from testbed.processes.channel import Channel, ChannelClosed, Garbled
from testbed.record import events, reading
from testbed.report import summaries
from testbed.report.read import gather, refusing
from testbed.run import config
from testbed.run.zygote import Told

ROOT = Path(__file__).parents[2]
Take = Callable[[bytes, Path], Any]


def written(content: bytes, folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def of_text(read: Callable[[str], Any]) -> Take:
    return lambda content, folder: read(content.decode("utf-8", "replace"))


def channel_words(content: bytes, folder: Path, kinds: Any = events.Known) -> None:
    ours, theirs = socket.socketpair()
    with ours, contextlib.closing(Channel(theirs, kinds)) as channel:
        ours.sendall(content[:60_000])
        ours.close()
        with contextlib.suppress(ChannelClosed):
            while True:
                channel.receive(10)


def event_lines(content: bytes, folder: Path) -> None:
    """Lines, and what a report's reader makes of them."""
    with refusing("events"):
        gather(reading.read(content.splitlines(keepends=True)))


def state(content: bytes, folder: Path) -> None:
    """Each twice: as it is, and with the checksum that a forger can work out."""
    for each in (content, content[:-32] + hashlib.sha256(content[:-32]).digest()):
        with contextlib.suppress(state_file.Unreadable):
            state_file.read(written(each, folder, "state"))


def away(content: bytes, folder: Path, name: str) -> None:
    availability.load(str(written(content, folder, name)), 3, 0, 100.0)


def toml_files(folder: str, *names: str) -> list[bytes]:
    return [(ROOT / folder / f"{name}.toml").read_bytes() for name in names]


def saved_state() -> bytes:
    tensors = {".a": torch.arange(6.0).view(2, 3), "torch": torch.ones(3)}
    parts = state_file.encoded(tensors, {"lasting": {"root": [1]}, "told": {"parts": {"a": 7}}})
    file = io.BytesIO()
    parts.write(file)
    return file.getvalue()


def lines_of_events() -> list[bytes]:
    found = made_run.events()
    return [b"".join(json.dumps(each).encode() + b"\n" for each in found)]


SCHEDULE = b"""
[[schedule]]
at_s = 3
clients = [1, 2]
up.rate_kbit = 500
down = { delay_ms = 50, loss_percent = 2 }
[[schedule]]
at_s = 9.5
outage_s = 2
"""
POSITIONS = b"""
step_s = 2
[access_point]
mode = "g"
range_m = 100
position = [0, 0]
[[station]]
position = [30, 40, 0]
[[station]]
path = [[0, 98, 0], [4, 102, 0], [8, 98, 0]]
"""
AWAY = b"""
[[away]]
clients = [1, 3]
at_s = 30
for_s = 60
[churn]
on_s = 120
off_s = 30
"""
PROGRAMS = b"""
clients = 4
until = "clients"
server = "python3 -m http.server 8000"
expect_bytes = "5MB"
round_regex = "round ([0-9]+)"
[env]
A = "b"
[nodes."client-*"]
command = ["curl", "-sO", "http://server:8000/FILE"]
after = "server:8000"
[nodes.client-4]
profile = "3g"
"""
CONFIG = b"""
method = "fedavg"
profile = "4g:12,wifi:5"
rounds = 3
clients = 17
seed = 4
dilation = "elastic"
deadline_s = 2.5
[options]
learning_rate = 0.01
"""
LAYOUT = plan([profiles.LinkProfile(name="own")] * 4)
KINDS: dict[str, tuple[Take, Sequence[bytes], tuple[type[Exception], ...]]] = {
    "channel words": (
        channel_words,
        lines_of_events()[0].splitlines(keepends=True)[:8],
        (Garbled,),
    ),
    "orders": (
        lambda content, folder: channel_words(content, folder, Told),
        [
            b'{"event":"address","host":"10.0.0.1","port":5555}\n',
            b'{"event":"away","node":"client-1","at_s":1.0,"actual_s":1.0}\n',
        ],
        (Garbled,),
    ),
    "events": (event_lines, lines_of_events(), (ConfigError,)),
    "profiles": (
        lambda content, folder: profiles.load(written(content, folder, "own.toml")),
        toml_files("netem_profiles", "4g", "wifi", "starlink"),
        (ConfigError,),
    ),
    "links in words": (
        of_text(link_words.read),
        [
            b"down 20mbit up 5mbit delay 20ms loss 0.1%",
            b"rate 10mbit delay 40ms 5ms limit 100 loss gemodel 1% 10% 70% 0.1%",
        ],
        (ConfigError,),
    ),
    "mixes": (
        of_text(lambda text: profiles.parse_mix(text, None)),
        [b"4g:12,wifi:5,3g:3", b'"rate 1mbit delay 3ms":2,4g:1'],
        (ConfigError,),
    ),
    "traces": (
        # By a name of its own: what has been read is kept.
        lambda content, folder: traces.load(
            str(written(content, folder, hashlib.sha256(content).hexdigest()))
        ),
        [b"1\n2\n2\n5\n9\n", b"0\n0\n30\n", b"".join(b"%d\n" % n for n in range(1, 200))],
        (ConfigError,),
    ),
    "schedules": (
        lambda content, folder: schedule.load(written(content, folder, "schedule.toml"), 3),
        [SCHEDULE],
        (ConfigError,),
    ),
    "positions": (
        lambda content, folder: positions.load(written(content, folder, "positions.toml")),
        [POSITIONS],
        (ConfigError,),
    ),
    "availability": (
        of_text(lambda text: availability.load(text, 3, 0, 100.0)),
        [b"on:120,off:30"],
        (ConfigError,),
    ),
    "availability in TOML": (
        lambda content, folder: away(content, folder, "away.toml"),
        [AWAY],
        (ConfigError,),
    ),
    "availability in CSV": (
        lambda content, folder: away(content, folder, "away.csv"),
        [b"client,leaves_s,returns_s\n1,30,90\n2,45.5,\n3, 0.5 , 6e1\n"],
        (ConfigError,),
    ),
    "programs": (
        lambda content, folder: programs_of(
            configuration.load(written(content, folder, "net.toml"), {}).programs, LAYOUT
        ),
        [PROGRAMS],
        (ConfigError,),
    ),
    "summaries": (
        lambda content, folder: summaries.load(written(content, folder, "summary.json")),
        [msgspec.json.encode(made_run.summary(made_run.events()))],
        (ConfigError,),
    ),
    "configuration": (
        lambda content, folder: config.load(written(content, folder, "config.toml"), {}),
        [CONFIG],
        (ConfigError,),
    ),
    "state files": (state, [saved_state()], ()),
}


def fuzz(kind: str, count: int, seed: int, folder: Path) -> int:
    """How many of ``count`` changed inputs were refused; what raises anything else fails."""
    take, corpus, refusals = KINDS[kind]
    draw = random.Random(f"{kind} {seed}")
    refused = 0
    for _ in range(count):
        content = mutated(draw, draw.choice(corpus), corpus)
        try:
            take(content, folder)
        except refusals:
            refused += 1
        except Exception as error:
            raise AssertionError(f"{kind}: {error!r} of {content!r}") from error
    return refused


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_that_are_whole_are_taken(kind: str, tmp_path: Path) -> None:
    take, corpus, _ = KINDS[kind]
    for content in corpus:
        take(content, tmp_path)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
def test_mutated_inputs_are_taken_or_refused(kind: str, tmp_path: Path) -> None:
    refused = fuzz(kind, 150, 0, tmp_path)
    assert refused or kind == "state files"


@pytest.mark.patient
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", KINDS)
def test_many_mutated_inputs_are_taken_or_refused(kind: str, tmp_path: Path) -> None:
    """WIRETUNE_MUTATIONS: another number of them, over all kinds."""
    count = int(os.environ.get("WIRETUNE_MUTATIONS", 120_000)) // len(KINDS)
    fuzz(kind, count, 1, tmp_path)
