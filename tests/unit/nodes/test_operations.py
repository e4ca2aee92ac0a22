"""Operations that a client needs in a round: by its samples, its classes, and beside these."""

import numpy as np

from nodes.program import FineTuning
from testbed.run.config import RunConfig

CLIENTS, ITERATIONS = 10, 3


def test_a_client_of_few_classes_has_fewer_operations_where_they_are_by_class() -> None:
    options = {"iterations": ITERATIONS, "ipc": 1}
    config = RunConfig(method="feddm", dataset="digits", alpha=0.05, options=options)
    program = FineTuning(config, clients=CLIENTS)
    program.prepare()
    found = []
    for node in range(1, CLIENTS + 1):
        labels = program._shard(node).targets
        found.append((len(labels), len(np.unique(labels)), program._round_flops(node, 1)))
    # Two unknowns, a sample's and a class's, from all clients: nothing is left over.
    counts = np.array([[samples, classes] for samples, classes, _ in found], float)
    told = np.array([operations for *_, operations in found], float)
    (each, of_class), _, rank, _ = np.linalg.lstsq(counts, told, rcond=None)
    assert rank == 2 and len({classes for _, classes, _ in found}) > 2
    np.testing.assert_allclose(counts @ [each, of_class], told, rtol=1e-9)
    # A step is a forward and two backward passes, less that of the weights, which stay.
    assert 1.9 < of_class / each < 2.1
