"""What a Network is asked for, before anything of it is built."""

from pathlib import Path
from typing import Any

import pytest

from testbed.library.network import Network
from testbed.network.topology import Plan

OWN = "[up]\nrate_kbit = 1000\n[down]\nrate_kbit = 2000\n"


@pytest.mark.parametrize("name", ["own.toml", "Smith, J:2.toml", 'a "b".toml'])
def test_a_profile_may_be_a_path_whatever_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Plan] = []

    def build(self: Network, layout: Plan, *_: Any, **__: Any) -> None:
        asked.append(layout)

    monkeypatch.setattr(Network, "_build", build)
    (tmp_path / name).write_text(OWN)
    Network(tmp_path / name, clients=2, server_profile=tmp_path / name)
    (layout,) = asked
    assert len(layout.clients) == 2
    assert [node.profile and node.profile.up.rate_kbit for node in layout.nodes] == [1000] * 3
