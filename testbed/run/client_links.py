"""Clients' links of a run: profiles or positions, then the schedule."""

import os

import msgspec

from testbed import outside
from testbed.config_error import ConfigError
from testbed.network import availability, positions, profiles, schedule
from testbed.network.availability import Away
from testbed.network.profiles import LinkProfile, absolute, absolute_mix, parse_mix
from testbed.network.schedule import Entry, State
from testbed.run.config import (
    DEFAULT_CLIENTS,
    DEFAULT_DEVICE_CLASS,
    DEFAULT_PROFILE,
    DEFAULT_SERVER_CLASS,
    RunConfig,
)


def client_links(config: RunConfig) -> list[LinkProfile]:
    """One profile a client, in their order.

    Raises:
        ConfigError: naming the file, the field, the value and what would be right.
    """
    if config.positions is None:
        mix = config.profile or DEFAULT_PROFILE
        found = parse_mix(mix, config.clients, default=DEFAULT_CLIENTS)
    elif config.profile is not None:
        raise ConfigError(
            f"positions = {config.positions!r}: gives every client its link, and so does "
            f"profile = {config.profile!r}; leave one out"
        )
    else:
        found = positions.load(config.positions)
        if config.clients not in (None, len(found)):
            raise ConfigError(
                f"clients = {config.clients}: {config.positions} has {len(found)} stations, "
                "one a client; make them agree, or leave clients out"
            )
    return found if config.schedule is None else _scheduled(found, config.schedule)


def times_away(config: RunConfig, clients: int) -> list[tuple[Away, ...]]:
    """Times when each client is away.

    Raises:
        ConfigError: naming the file, the place, the value and what would be right.
    """
    if config.availability is None:
        return [()] * clients
    longest_s = min(config.time_limit_s, config.rounds * config.round_timeout_s)
    return availability.load(config.availability, clients, config.seed, longest_s)


def repeatable(config: RunConfig) -> RunConfig:
    """The same run with nothing left to a default, and the same in whatever folder it starts.

    Raises:
        ConfigError: a mix that is none, or a path that can be none here.
    """
    mix, server, away = config.profile, config.server_profile, config.availability
    if mix is None and config.positions is None:
        mix = DEFAULT_PROFILE
    values = {
        "profile": None if mix is None else absolute_mix(mix),
        "server_profile": None if server is None else absolute(server),
        "out": str(outside.expanded(config.out)),
    }
    for field in ("positions", "schedule"):
        text = getattr(config, field)
        values[field] = None if text is None else outside.absolute(text)
    if config.data_path is not None:
        found = outside.absolute(config.data_path)
        # What is no file here may be a repository's name, the same everywhere.
        values["data_path"] = found if os.path.exists(found) else config.data_path
    if away is not None and not availability.is_means(away):
        values["availability"] = outside.absolute(away)
    if config.compute == "modelled":
        values["device_class"] = config.device_class or DEFAULT_DEVICE_CLASS
        values["server_device_class"] = config.server_device_class or DEFAULT_SERVER_CLASS
    return msgspec.structs.replace(config, **values)


def files(config: RunConfig, links: list[LinkProfile]) -> dict[str, str]:
    """Digests of the files that a run's links are read from, by what each is called.

    ``links``: the clients' and the server's, whose traces are among them.

    Raises:
        ConfigError: one of them cannot be read.
    """
    found: dict[str, str] = {}
    clients = config.profile if config.positions else config.profile or DEFAULT_PROFILE
    for text in (clients, config.server_profile):
        if text is not None:
            found |= profiles.files(text)
    others = [config.positions, config.schedule, config.availability]
    for text in others:
        if text is not None and not availability.is_means(text):
            found[text] = text
    for link in {id(link): link for link in links}.values():
        ways = [link.up, link.down, *(each for s in link.schedule for each in (s.up, s.down))]
        found |= {way.trace: way.trace for way in ways if way.trace is not None}
    return {name: outside.digest(path, "file") for name, path in found.items()}


def differing(before: dict[str, str], now: dict[str, str]) -> str | None:
    """The first file whose contents are others, in words, or None."""
    for name in before.keys() | now.keys():
        if before.get(name) != now.get(name):
            return f"{name} is not what it was"
    return None


def _scheduled(profiles: list[LinkProfile], file: str) -> list[LinkProfile]:
    """Each client's profile with the entries of ``file`` that are for it."""
    entries = schedule.load(file, len(profiles))
    # Clients of one profile and the same entries share their states.
    compiled: dict[tuple[int, tuple[int, ...]], tuple[State, ...]] = {}
    own: list[list[Entry]] = [[] for _ in profiles]
    for entry in entries:
        # A set, for a client may be named twice.
        for number in set(entry.clients or range(1, len(profiles) + 1)):
            own[number - 1].append(entry)
    found = []
    for number, (profile, mine) in enumerate(zip(profiles, own, strict=True), start=1):
        if mine and profile.schedule:
            raise ConfigError(
                f"{file}: schedule entry {mine[0].number}: client {number} has a schedule "
                f"already, that of {profile.name}; name other clients in the entry, or take "
                "the schedule out of the one or the other"
            )
        key = (id(profile), tuple(entry.number for entry in mine))
        if key not in compiled:
            compiled[key] = _compiled(file, mine, profile)
        found.append(msgspec.structs.replace(profile, schedule=compiled[key]) if mine else profile)
    return found


def _compiled(file: str, entries: list[Entry], profile: LinkProfile) -> tuple[State, ...]:
    try:
        return schedule.states(entries, profile.up, profile.down)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
