"""An all-reduce over MPI: each rank's array of 1 MB, and the sum of all at each."""

import socket

import numpy as np
from mpi4py import MPI

VALUES = 125_000


def main() -> None:
    world = MPI.COMM_WORLD
    total = np.empty(VALUES)
    world.Allreduce(np.full(VALUES, world.rank + 1.0), total)
    right = world.size * (world.size + 1) / 2
    summed = "the sum is right" if (total == right).all() else "the sum is wrong"
    print(f"rank {world.rank} of {world.size} on {socket.gethostname()}: {summed}", flush=True)


if __name__ == "__main__":
    main()
