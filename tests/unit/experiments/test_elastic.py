"""When a run's clock is elastic, and what becomes of it where it cannot be."""

import pytest

from experiments import elastic
from testbed.config_error import ConfigError
from testbed.links import choice
from testbed.network.profiles import LinkProfile
from testbed.network.topology import plan
from testbed.processes import cores
from testbed.run.config import RunConfig


@pytest.mark.parametrize(
    ("dilation", "links", "transport", "expected"),
    [
        ("elastic", "userspace", "zmq", "elastic"),
        ("elastic", "loopback", "zmq", "elastic"),
        ("elastic", "netem", "zmq", 1.0),
        ("elastic", "userspace", "gloo", 1.0),
        ("auto", "netem", "zmq", "auto"),
        (12.0, "userspace", "zmq", 12.0),
    ],
)
def test_the_clock_is_elastic_where_it_can_be(dilation, links, transport, expected):
    config = RunConfig(dilation=dilation, transport=transport, method="fedavg")
    assert elastic.possible(config, links, asked=False) == expected


@pytest.mark.parametrize(
    ("links", "transport", "cure"),
    [("netem", "zmq", "take --links=userspace"), ("userspace", "gloo", "take --transport=zmq")],
)
def test_an_elastic_clock_that_is_asked_for_and_cannot_be_is_refused(links, transport, cure):
    config = RunConfig(transport=transport, method="fedavg")
    with pytest.raises(ConfigError, match=rf"dilation = 'elastic': .*{cure}, or --dilation=K"):
        elastic.possible(config, links, asked=True)


def layout(clients):
    return plan([LinkProfile(name="x")] * clients)


def test_a_crowd_is_more_nodes_than_cores(monkeypatch):
    monkeypatch.setattr(cores, "usable", lambda: 4)
    assert elastic.crowd(RunConfig(), layout(3)) == ""
    assert elastic.crowd(RunConfig(), layout(4)) == "5 nodes on 4 cores"
    assert elastic.crowd(RunConfig(dilation=1.0), layout(4)) == ""
    assert elastic.crowd(RunConfig(transport="gloo", method="fedavg"), layout(4)) == ""


def test_a_crowd_takes_userspace_links_before_netem(monkeypatch):
    for backend in choice.BACKENDS:
        monkeypatch.setattr(backend, "probe", lambda: None)
        if hasattr(backend, "unsupported"):
            monkeypatch.setattr(backend, "unsupported", lambda plan: None)
    assert choice.choose("auto", layout(4))[0].name == "netem"
    backend, why = choice.choose("auto", layout(4), crowd="5 nodes on 4 cores")
    assert backend.name == "userspace"
    assert "its clock waits for 5 nodes on 4 cores" in why
    monkeypatch.setattr(choice.userspace, "probe", lambda: "no TUN devices here")
    assert choice.choose("auto", layout(4), crowd="5 nodes")[0].name == "netem"
    assert choice.choose("netem", layout(4), crowd="5 nodes")[0].name == "netem"
