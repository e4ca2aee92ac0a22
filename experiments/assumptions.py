"""Assumptions of a row: what its method has that others may lack, as the method itself declares."""

from __future__ import annotations

import methods
from nodes import method_options
from nodes.workload.dataset import TEXTS
from testbed.run.config import RunConfig


def of(config: RunConfig) -> list[str]:
    """Assumptions of a run, in a few words each, to be known before it is held against another."""
    method = methods.load(config.method)
    options = method_options.of(config, method)
    found = []
    if public := method.public_samples(options):
        drawn = method.public_source(options) != "held-out"
        what = "sequences" if config.dataset in TEXTS else "images"
        found.append(f"{public} public {what}, {'drawn' if drawn else 'of the training set'}")
    if seen := method.server_sees(options):
        found.append(f"the server sees {seen}")
    if hasattr(method.Client, "evaluate"):
        found.append("a model of each client's own")
    if method.peer_to_peer or config.transport == "gloo":
        found.append("clients speak to one another")
    if method.asynchronous:
        found.append("rounds that wait for nobody")
    return found


def alone(each: list[list[str]]) -> list[list[str]]:
    """Each row's assumptions, less those that all rows have."""
    common = set(each[0]).intersection(*each[1:]) if each else set()
    return [[text for text in own if text not in common] for own in each]
