"""Resumption of a killed run: from which round, with which states, and what is another now."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from nodes.checkpoint import store
from nodes.workload import models
from testbed.config_error import ConfigError
from testbed.record.events import Event, as_dict, known
from testbed.record.recovery import Killed
from testbed.run import client_links
from testbed.run.config import RunConfig

Facts = dict[str, Any]
ELSEWHERE = {"hosts", "place", "on_lost_host"}
"""Settings that may be others: all states are in the run's folder, wherever their nodes were."""


class Resumption:
    """All that ``launch`` needs to carry a killed run on."""

    def __init__(self, killed: Killed, config: RunConfig, clients: list[str]) -> None:
        """Raises ConfigError: its configuration was changed, or no round can be gone on from."""
        self._killed = killed
        _check_config(killed, config)
        self.folder = killed.folder
        self.states = self.folder / store.FOLDER
        self.start = store.choose(self.states, killed.facts.identity, clients, killed.rounds)

    def facts(self, facts: Facts) -> Facts:
        """Facts for the "resumed" event; ``facts``: those that "run" would have now."""
        number = self.start.round
        now = {name: facts[name] for name in ("command", "environment")}
        return {
            "round": number,
            "at_s": self._killed.last_t,
            "lost": self._killed.lost(number),
            **now,
        }

    def check_data(self, facts: Facts) -> None:
        """ConfigError where the run trained on other data; ``facts``: what "run" would say now."""
        before, now = known(self._killed.facts.data), facts.get("data")
        if before is not None and before != now:
            raise ConfigError(
                f"--resume {self.folder}: the files of dataset {facts.get('dataset')} are not "
                f"those that the run began with (SHA-256 {before[:12]}, now {str(now)[:12]}): put "
                "those back, or start another run with --config on its config.toml"
            )

    def check_files(self, facts: Facts) -> None:
        """ConfigError where profiles, traces or schedules say other things than at the start."""
        before, now = known(self._killed.facts.files), facts["files"]
        if before is not None and (wrong := client_links.differing(before, now)):
            raise ConfigError(
                f"--resume {self.folder}: {wrong}, when the run began: put that back, or start "
                "another run with --config on its config.toml"
            )

    def read(self, config: RunConfig, facts: Facts) -> list[str]:
        """Files and models outside its folder that the run reads because its config.toml says so.

        ``facts``: those that "run" would have now.
        """
        # Others are profiles that ship.
        found = sorted(name for name in facts["files"] if Path(name).is_absolute())
        if models.is_checkpoint(config.model):
            found.append(f"model {config.model}")
        if config.data_path is not None:
            found.append(f"data {config.data_path}")
        return found

    def past(self) -> Iterator[Event]:
        """The events that count."""
        return self._killed.events(self.start.round)

    def differences(self, facts: Facts) -> list[str]:
        """Differences that may give another result; ``facts``: those that "run" would have now."""
        before, now = _software(as_dict(self._killed.facts)), _software(facts)
        return [
            f"{name} was {before.get(name)} and is {value} now: the result may be another"
            for name, value in now.items()
            if before.get(name) != value
        ]


def _software(facts: Facts) -> dict[str, Any]:
    environment = facts.get("environment") or {}
    own = {name: environment.get(name) for name in ("python", "machine")}
    source = {"source": environment.get("git"), "file of weights": facts.get("weights")}
    return {**own, **environment.get("packages", {}), **source}


def _check_config(killed: Killed, config: RunConfig) -> None:
    before, now = killed.facts.config, msgspec.json.decode(msgspec.json.encode(config))
    for name in before.keys() & now.keys() - ELSEWHERE:
        if before[name] != now[name]:
            raise ConfigError(
                f"--resume {killed.folder}: {name} = {now[name]!r} in its config.toml is not the "
                f"run's own, {before[name]!r}; put that back, or start another run with --config"
            )
