"""The pytest plugin: a test's own nodes behind shaped links, by a fixture and a marker."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from testbed.library.network import Network

MARKER = (
    "wiretune(profile='4g', clients=1, server_profile=None, links='auto', certify=False, "
    "strict=False): the network that the fixture wiretune_network has"
)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER)


@pytest.fixture
def wiretune_network(request: pytest.FixtureRequest) -> Iterator[Network]:
    """A wiretune.Network as the marker ``wiretune`` says, for one test."""
    from testbed.library.network import Network
    from testbed.links.interface import LinkError

    marker = request.node.get_closest_marker("wiretune")
    arguments, options = (marker.args, marker.kwargs) if marker else ((), {})
    wrong, network = None, None
    try:
        network = Network(*arguments, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        wrong = str(error)
    if network is None:
        # Not while that is handled, or it would be shown twice.
        pytest.fail(f"wiretune: {wrong}", pytrace=False)
    with network:
        yield network
        with contextlib.suppress(LinkError):  # A test may have ended it.
            found = network.bytes().items()
            carried = [f"{name}: {each.up} up, {each.down} down" for name, each in found]
            told = "\n".join(carried)
            request.node.add_report_section("teardown", "wiretune: bytes by node", told)
