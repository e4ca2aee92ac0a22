"""Runs on two hosts over networks of several kinds: links are as asked, and carry what one's do."""

import json
from pathlib import Path
from typing import Any

import captured
import pytest
import warm
from machines import CLI, LIMIT_S, Machines, said

from testbed.network.profiles import LinkProfile
from testbed.network.topology import plan

CLIENTS = 4
FAST = ("--method=fedavg", "--set=batch_size=128", "--set=local_epochs=1", "--train-samples=200")
LINKS = (f"--clients={CLIENTS}", "--profile=wifi", "--dilation=1", "--links=userspace")
RUN = (*LINKS, "--rounds=2", "--pcap", *FAST)
PLACE = "--place=server=a,client-1:2=a,client-3:4=b"
pytestmark = [pytest.mark.timeout(3 * LIMIT_S), pytest.mark.quiet]


def probed(summary: dict[str, Any]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Checks of clients' links."""
    checks = summary["fidelity"]["checks"]
    return {
        (check["link"], check["direction"], check["name"]): check
        for check in checks
        if check["link"].startswith("client-")
    }


def carried(out: Path) -> dict[str, list[int]]:
    """TCP's payload by client, what was sent again once, up and down; and acknowledgements up."""
    (folder,) = out.glob("*/captures")
    layout = plan([LinkProfile(name="any")] * CLIENTS)
    found: dict[str, list[int]] = {"up": [], "down": [], "acknowledgements": []}
    for node in layout.clients:
        packets = [each for each in captured.read(folder / f"{node.name}.pcap") if each.is_tcp]
        for way, sender in (("up", node.address), ("down", layout.server.address)):
            sent = sum(len(each.payload) for each in packets if each.source == sender)
            found[way].append(sent - captured.sent_again(packets, sender)[1])
        bare = [each for each in packets if each.source == node.address and not each.payload]
        found["acknowledgements"].append(len(bare))
    return found


@pytest.fixture(scope="module")
def alone(
    userspace_links: None, root: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """Summary of the run on one host, and what it carried."""
    out = tmp_path_factory.mktemp("alone")
    done = warm.run([*CLI, "launch", f"--out={out}", "--plain", *RUN])
    assert done.returncode == 0, done.stdout + done.stderr
    (summary,) = out.glob("*/summary.json")
    return json.loads(summary.read_text()), carried(out)


@pytest.mark.parametrize(
    ("way_ms", "jitter_ms"),
    [
        pytest.param(0.1, 0.0, marks=pytest.mark.thorough),
        pytest.param(2.0, 0.0, marks=pytest.mark.thorough),
        (2.0, 0.5),
    ],
)
def test_links_are_as_on_one_host_and_carry_the_same(
    alone: tuple[dict[str, Any], dict[str, list[int]]],
    tmp_path: Path,
    way_ms: float,
    jitter_ms: float,
) -> None:
    here, on_one = alone
    found = Machines(2, tmp_path, way_ms, jitter_ms)
    try:
        found.agent(1)
        several = found.launch(PLACE, *RUN)
        text = said(several)
        assert several.returncode == 0, text
        there, on_two = found.summary(), carried(tmp_path / "out")
    finally:
        found.close()
    wire = [(each["bytes"]["wire"]["up"], each["bytes"]["wire"]["down"]) for each in (here, there)]
    print("wire bytes, one host and two:", *wire)
    print("carried, on one host:", on_one, "on two:", on_two)
    for way in ("up", "down"):
        assert on_two[way] == pytest.approx(on_one[way], rel=0.001)
    one, two = probed(here), probed(there)
    for which, check in two.items():
        print(*which, "measured on one host and on two:", one[which]["measured"], check["measured"])
    assert [row["metrics"] for row in there["rounds"]] == [row["metrics"] for row in here["rounds"]]
    assert one.keys() == two.keys()
    # A busy machine may break the gates; it cannot bring a wrong link this near.
    for check in two.values():
        if check["name"] in ("round trip", "rate"):
            assert 0.4 * check["expected"] < check["measured"] < 2 * check["expected"], check
    # Acknowledgements and what is sent again differ from run to run.
    assert wire[1] == pytest.approx(wire[0], rel=0.03)
    network = [check for check in there["fidelity"]["checks"] if " to " in check["link"]]
    assert len(network) == 4
