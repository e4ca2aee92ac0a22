"""From a run's configuration to its clients' links: profiles or positions, then the schedule."""

from pathlib import Path

import msgspec

from testbed import availability, positions, schedule
from testbed.availability import Away
from testbed.config import (
    DEFAULT_CLIENTS,
    DEFAULT_DEVICE_CLASS,
    DEFAULT_PROFILE,
    DEFAULT_SERVER_CLASS,
    RunConfig,
)
from testbed.config_error import ConfigError
from testbed.profiles import LinkProfile, absolute_mix, parse_mix
from testbed.schedule import Entry, State


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
    """For each client when it is away.

    Raises:
        ConfigError: naming the file, the place, the value and what would be right.
    """
    if config.availability is None:
        return [()] * clients
    longest_s = min(config.time_limit_s, config.rounds * config.round_timeout_s)
    return availability.load(config.availability, clients, config.seed, longest_s)


def repeatable(config: RunConfig) -> RunConfig:
    """The same run with nothing left to a default, and the same in whatever folder it starts."""
    mix = config.profile
    if mix is None and config.positions is None:
        mix = DEFAULT_PROFILE
    values = {
        field: None if text is None else absolute_mix(text)
        for field, text in (("profile", mix), ("server_profile", config.server_profile))
    }
    for field in ("positions", "schedule", "data_path"):
        text = getattr(config, field)
        values[field] = None if text is None else str(Path(text).resolve())
    if config.availability is not None and not config.availability.startswith("on:"):
        values["availability"] = str(Path(config.availability).resolve())
    if config.compute == "modelled":
        values["device_class"] = config.device_class or DEFAULT_DEVICE_CLASS
        values["server_device_class"] = config.server_device_class or DEFAULT_SERVER_CLASS
    return msgspec.structs.replace(config, **values)


def _scheduled(profiles: list[LinkProfile], file: str) -> list[LinkProfile]:
    """Each client's profile with the entries of ``file`` that are for it."""
    entries = schedule.load(file, len(profiles))
    # Clients of one profile and the same entries share their states.
    compiled: dict[tuple[int, tuple[int, ...]], tuple[State, ...]] = {}
    found = []
    for number, profile in enumerate(profiles, start=1):
        mine = [entry for entry in entries if entry.clients is None or number in entry.clients]
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
