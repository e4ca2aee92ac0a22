"""Membership of a run: who has joined it, is away for a while or gone for good, and who knows."""

import asyncio
import random
from collections.abc import Mapping


class Membership:
    """Clients by name; whoever waits for a change hears of it at once."""

    def __init__(self, samples: Mapping[str, int]) -> None:
        """``samples``: training samples of each client, of all by name."""
        self.samples: dict[str, int] = {}
        """Of each that has joined, in the order of that."""
        self.gone: dict[str, str] = {}
        """Why each is gone for good."""
        self.away: dict[str, str] = {}
        """The same of those who will be back. No round chooses them."""
        self._samples = samples
        self._told: dict[str, dict[str, str]] = {name: {} for name in samples}
        """What each client knows of who is absent."""
        self._all_joined = asyncio.Event()
        self._someone_there = asyncio.Event()

    @property
    def joined(self) -> tuple[str, ...]:
        return tuple(name for name in self.samples if name not in self.gone)

    @property
    def there(self) -> tuple[str, ...]:
        return tuple(name for name in self.joined if name not in self.away)

    @property
    def unheard(self) -> set[str]:
        """Clients that have never joined."""
        return self._samples.keys() - self.samples.keys()

    def drawn(self, most: int, seed: int) -> tuple[str, ...]:
        """All who are there, or a draw of so many that depends on them and the seed alone."""
        there = self.there
        if len(there) <= most:
            return there
        draw = random.Random(seed).sample(sorted(there), most)
        return tuple(name for name in there if name in draw)

    async def all_joined(self) -> None:
        """Wait until every client has joined that is not gone."""
        await self._all_joined.wait()

    async def someone_there(self) -> None:
        """Wait until a round has somebody to choose, or nobody is left who could come."""
        await self._someone_there.wait()

    def join(self, client: str) -> None:
        """A client may join twice: its first hello may have been lost with a connection."""
        self.samples.setdefault(client, self._samples[client])
        self._changed()

    def lose(self, client: str, reason: str) -> None:
        self.gone.setdefault(client, reason)
        self._changed()

    def leave(self, client: str, since: str) -> None:
        """A round that has chosen it is not told: a server hears of it by waiting in vain."""
        self.away[client] = f"away since {since}"
        self._changed()

    def come_back(self, client: str) -> None:
        self.away.pop(client, None)
        self._changed()

    def news(self, client: str) -> dict[str, str]:
        """Absences and reasons that ``client`` has not been told; "": no longer absent."""
        absent = self.away | {name: f"lost: {reason}" for name, reason in self.gone.items()}
        told = self._told[client]
        news = {name: why for name, why in absent.items() if told.get(name) != why}
        return news | {name: "" for name in told if name not in absent}

    def tell(self, client: str, news: dict[str, str]) -> None:
        """``client`` knows these now."""
        told = self._told[client] | news
        self._told[client] = {name: why for name, why in told.items() if why}

    def _changed(self) -> None:
        if not self.unheard - self.gone.keys():
            self._all_joined.set()
        if self.there or not self.joined:
            self._someone_there.set()
        else:
            self._someone_there.clear()
