"""A standing network: other processes of its user visit it, and it may outlive its maker."""

import shlex
from collections.abc import Sequence

from testbed.library import lines
from testbed.library.network import Network
from testbed.library.places import LAUNCHER, Place
from testbed.links.interface import LinkError
from testbed.network.topology import Plan

_OWNER_ALONE = 0o700


class StandingNetwork(Network):
    """A Network with a place where visitors find it."""

    def __init__(
        self,
        layout: Plan,
        place: Place,
        visiting: Sequence[str],
        *,
        links: str = "auto",
        certify: bool = False,
        strict: bool = False,
    ) -> None:
        """Build it; raises what Network does.

        ``place``: locked; closed once the keeper has it, and removed if there comes to be none.
        ``visiting``: words of the command that runs what follows, a node and a command, in there.
        """
        try:
            launcher = place.folder / LAUNCHER
            words = [*visiting, f"--network={place.folder}"]
            launcher.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
            launcher.chmod(_OWNER_ALONE)
            self._build(layout, links, certify=certify, strict=strict, place=place)
        except BaseException as error:
            if place.lock():
                place.remove()
            else:
                place.close()
            if isinstance(error, OSError):
                text = f"make a network in {place.folder}: {error.strerror}"
                raise LinkError(text) from error
            raise
        self.folder = place.folder
        place.close()

    def leave(self) -> None:
        """Have it stay without this process, until a visitor ends it."""
        self._send(lines.Stay())
        self._channel.close()
