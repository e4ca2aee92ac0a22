"""DDP of one layer over gloo: each step sums its gradients over all nodes.

    torchrun ... examples/ddp.py [--mb=1] [--steps=3] [--timeout=1800]

``--mb`` is the size of the layer's weights in MB, ``--timeout`` how many seconds gloo waits.
"""

import argparse
import datetime
import socket

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

INPUTS = 1000
ROWS_A_MB = 250


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mb", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=1800.0)
    given = parser.parse_args()
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=given.timeout))
    rank, size = dist.get_rank(), dist.get_world_size()
    print(f"rank {rank} of {size} on {socket.gethostname()}", flush=True)
    torch.manual_seed(rank)
    layer = nn.Linear(INPUTS, ROWS_A_MB * given.mb, bias=False)
    model = DistributedDataParallel(layer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(1, given.steps + 1):
        optimizer.zero_grad()
        model(torch.randn(4, INPUTS)).square().mean().backward()
        optimizer.step()
        print(f"step {step}", flush=True)
    mine = layer.weight.detach().double().sum().reshape(1)
    every = [torch.empty_like(mine) for _ in range(size)]
    dist.all_gather(every, mine)
    print("weights agree" if all(torch.equal(mine, other) for other in every) else "they differ")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
