"""Memory that a run's nodes take of their host at least: what several hosts are held against."""

from collections.abc import Iterable

from torch import Tensor

import methods
from nodes import method_options
from nodes.program import FineTuning
from testbed.machine.doctor import CLIENT_MB, RUN_MB
from testbed.network.hosts import Needs
from testbed.run.config import RunConfig

COPIES = 2
"""Of what a node learns: its own and its gradients; at the server the model and the sum."""


def of(config: RunConfig, program: FineTuning) -> Needs:
    """Needs of each node, and of each host that has any.

    What activations, optimizers, messages and data take comes on top, and is not known before it is
    there: who is refused has no room for the run, who is not may still have too little.
    """
    method = methods.load(config.method)
    whole = learnt = 0
    if config.compute == "real":
        whole = _bytes(program.task.skeleton().parameters())
    # Clients of others may have a part of the model, or no gradients; those of a GPU's are there.
    if whole and method.all_reduce is not None and not any(program.places):
        model = method.adapt(method_options.of(config, method), program.task.skeleton())
        learnt = _bytes(each for each in model.parameters() if each.requires_grad)
    node = CLIENT_MB * 10**6 + COPIES * learnt
    return Needs(client=node, server=node, shared=RUN_MB * 10**6 + whole)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)
