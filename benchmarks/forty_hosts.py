"""What many clients on many hosts need, on paper: arithmetic from costs that were measured.

    python benchmarks/forty_hosts.py [--clients=10000] [--hosts=40] [--profile=4g]

Costs are those of docs/hosts.md, which hosts.py has measured. Printed is the table that stands in
that page too: what crosses the server's host, how many link processes carry it, one a core, there
and on a host of clients, and how long a round's transfers take at least.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click

from testbed.network.direction import FRAME_BYTES, SEGMENT_BYTES, WAYS
from testbed.network.profiles import LinkProfile, load

PAGE = Path(__file__).parents[1] / "docs" / "hosts.md"
LINKS = "20 of 50 Mbit/s, 25 ms"
"""The row of costs that is nearest: packets of many lines, more than a core can take one by one."""
PROFILE = "4g"
CLIENTS, HOSTS = 10_000, 40
SERVER_MBIT = 1000
"""Of a `--server-profile`."""
PROCESSES = 16
"""Link processes of a host that has several."""
ACKNOWLEDGED = 2
"""Full frames to an acknowledgement at least (RFC 1122); receive offload makes it more."""
PAYLOADS_MB = {"FedPEFT LoRA": 0.053, "FedAvg, all weights": 1.21}
"""Of a client's update, one way, with the shipped model."""


class Cost(NamedTuple):
    """µs of a core that a frame takes, of either host's link process, and of one that has both."""

    one: float
    server: float
    clients: float


class Needs(NamedTuple):
    """What a way asks for where clients do all at once what their lines and the server's allow."""

    arrangement: str
    way: str
    gbit: float
    """Through the server's host."""
    server_cores: float
    """Link processes that its frames keep busy."""
    client_cores: float
    """The same on a host of clients."""
    carried_gbit: float
    """What the processes that are there carry of it."""
    updates: int
    """That cross it in a round."""
    own_gbit: float
    """What is carried on each host of clients."""
    own_updates: int

    def round_s(self, update_mb: float) -> float:
        """Seconds that a round's updates take at least, there and across the server's host."""
        slowest = max(self.updates / self.carried_gbit, self.own_updates / self.own_gbit)
        return slowest * update_mb * 8 / 1000 / (SEGMENT_BYTES / FRAME_BYTES)


def costs(page: str, links: str = LINKS) -> dict[str, Cost]:
    """By way, from the table of docs/hosts.md."""
    table = page.split("<!-- costs:")[1].split("<!-- end of costs -->")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[1:]]
    places = [rows[0].index(head) for head in ("µs a frame, one host", "the server's", "clients'")]
    return {
        row[1]: Cost(*(float(row[place]) for place in places)) for row in rows if row[0] == links
    }


def frames_per_s(gbit: float) -> float:
    """Full frames, and the acknowledgements that go the other way."""
    return gbit * 1e9 / 8 / FRAME_BYTES * (1 + 1 / ACKNOWLEDGED)


def gbit_a_core(frame_us: float) -> float:
    return 1 / (frame_us * 1e-6) / frames_per_s(1.0)


def needs(
    found: dict[str, Cost], link: LinkProfile, clients: int = CLIENTS, hosts: int = HOSTS
) -> Iterator[Needs]:
    for name, most_gbit, crossing, processes in (
        ("as it is", math.inf, clients, 1),
        (f"`--server-profile` of {SERVER_MBIT / 1000:g} Gbit/s", SERVER_MBIT / 1000, clients, 1),
        (f"{PROCESSES} link processes a host", math.inf, clients, PROCESSES),
        ("a server of its own on each host, one for them", math.inf, hosts, 1),
    ):
        for way in WAYS:
            cost, line_kbit = found[way], getattr(link, way).line_kbit
            asked = clients * line_kbit / 1e6
            gbit = min(asked * crossing / clients, most_gbit)
            # Clients whose server is on their host keep its lines as full, by one process.
            of_a_host = min(asked, most_gbit) / hosts
            clients_us = cost.clients if crossing == clients else cost.one
            yield Needs(
                name,
                way,
                gbit,
                frames_per_s(gbit) * cost.server / 1e6,
                frames_per_s(of_a_host) * clients_us / 1e6,
                min(gbit, processes * gbit_a_core(cost.server)),
                crossing,
                min(of_a_host, processes * gbit_a_core(clients_us)),
                math.ceil(clients / hosts),
            )


def table(
    page: str, profile: str = PROFILE, clients: int = CLIENTS, hosts: int = HOSTS
) -> list[str]:
    heads = ("arrangement", "way", "asked, Gbit/s", "cores, the server's host", "a clients' host")
    lines = [
        f"| {' | '.join((*heads, 'carried, Gbit/s', *(f'{n}, s' for n in PAYLOADS_MB)))} |",
        f"|---|---|{'---:|' * (4 + len(PAYLOADS_MB))}",
    ]
    for each in needs(costs(page), load(profile), clients, hosts):
        seconds = [f"{each.round_s(mb):.3g}" for mb in PAYLOADS_MB.values()]
        figures = (each.gbit, each.server_cores, each.client_cores, each.carried_gbit)
        cells = (each.arrangement, each.way, *(f"{figure:.3g}" for figure in figures), *seconds)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


@click.command()
@click.option("--clients", default=CLIENTS, show_default=True, type=click.IntRange(1))
@click.option("--hosts", default=HOSTS, show_default=True, type=click.IntRange(1))
@click.option("--profile", default=PROFILE, show_default=True)
def main(clients: int, hosts: int, profile: str) -> None:
    click.echo("\n".join(table(PAGE.read_text(encoding="utf-8"), profile, clients, hosts)))


if __name__ == "__main__":
    main()
