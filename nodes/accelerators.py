"""Accelerators: on which device each node of a run computes, and what this machine has of them.

The supervisor and the zygote never initialise CUDA, for a process that is forked from one that did
cannot use it. A process of its own looks what there is.
"""

from __future__ import annotations

import functools
import os
import select
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import torch

from nodes.device_classes import mixed
from testbed.config_error import ConfigError, closest
from testbed.processes.child import describe_exit, fork_alone, run_as_child
from testbed.run.config import RunConfig

CPU, CUDA = "cpu", "cuda"
KINDS = (CPU, CUDA)
LOOKING_LIMIT_S = 120.0
"""A driver that nothing has used for a while takes seconds a device."""
NVML_ALONE = "PYTORCH_NVML_BASED_CUDA_CHECK"
"""Has torch count devices without initialising CUDA, where a library asks whether there are any."""


class Found(msgspec.Struct, frozen=True):
    """The devices of this machine, or why there are none to compute on."""

    devices: list[str] = []
    """Names, in CUDA's order."""
    reason: str | None = None


def kinds(config: RunConfig, clients: int) -> list[str]:
    """CPU or CUDA for the server and for each client.

    Raises:
        ConfigError: naming the field and what would be right.
    """
    ours = mixed("accelerator", config.accelerator, clients, _check, "cuda:12")
    server = CUDA if set(ours) == {CUDA} else CPU
    return [config.server_accelerator or server, *ours]


def places(
    config: RunConfig, clients: int, look: Callable[[], Found] | None = None
) -> list[str | None]:
    """Devices of the server and of each client, such as ``cuda:0``; None is the CPU.

    Nodes are dealt to the devices in turn. ``look`` finds those.

    Raises:
        ConfigError: the run cannot have them, with what would be right.
    """
    found = kinds(config, clients)
    if CUDA not in found:
        return [None] * len(found)
    said = _said(config)
    _refuse_together(config, found, said)
    there = (look or looked)()
    if there.reason is not None:
        raise ConfigError(f"{said}: {there.reason}; take --accelerator=cpu, or leave it out")
    # No library is to initialise it in the process that nodes are forked from.
    os.environ.setdefault(NVML_ALONE, "1")
    dealt = _dealt(len(there.devices))
    return [next(dealt) if kind == CUDA else None for kind in found]


def _said(config: RunConfig) -> str:
    if CUDA in config.accelerator:
        return f"accelerator = {config.accelerator!r}"
    return f"server_accelerator = {config.server_accelerator!r}"


def _refuse_together(config: RunConfig, found: list[str], said: str) -> None:
    server, ours = found[0] == CUDA, CUDA in found[1:]
    for field, value, there, reason in (
        ("compute", config.compute, config.compute == "modelled", "computes nothing"),
        (
            "device_class",
            config.device_class,
            ours,
            "stretches CPU seconds by what a core here reaches, which says nothing of a GPU",
        ),
        ("server_device_class", config.server_device_class, server, "does so too"),
        (
            "client_memory_mb",
            config.client_memory_mb,
            ours,
            "limits the host's memory, of which CUDA itself takes hundreds of MB and a model none",
        ),
    ):
        if there and value is not None:
            raise ConfigError(f"{said}: {field} = {value!r} {reason}; leave one of them out")


def _check(kind: str) -> None:
    if kind not in KINDS:
        near = closest(kind, KINDS) or "."
        raise ConfigError(
            f"accelerator {kind!r}: unknown{near} Known: {', '.join(KINDS)}, or a mix such as "
            "cuda:12,cpu:8."
        )


def _dealt(count: int) -> Iterator[str]:
    number = 0
    while True:
        yield f"{CUDA}:{number % count}"
        number += 1


def kind(place: str | None) -> str:
    """CPU or CUDA, of a place."""
    return CPU if place is None else CUDA


def names(places: list[str | None]) -> list[str]:
    """Names of the devices that nodes in these places compute on, in CUDA's order."""
    used = sorted({int(place.partition(":")[2]) for place in places if place})
    return [looked().devices[number] for number in used]


def device_files() -> tuple[Path, ...]:
    """Files that a process on any of the devices opens: the driver's, as they are there now.

    Its libraries lie in folders that every node reads. ``/dev/nvidia-uvm`` appears when the first
    process of the machine uses CUDA, which who looks for devices has been.
    """
    return tuple(sorted(Path("/dev").glob("nvidia*")))


@functools.cache
def looked() -> Found:
    """The devices that a process of this machine can compute on, as a child of this one finds."""
    if not torch.backends.cuda.is_built() or torch.version.cuda is None:
        return Found(reason=f"torch {torch.__version__} is built without CUDA")
    reads, writes = os.pipe()
    parent = os.getpid()
    pid = fork_alone()
    if pid == 0:
        os.close(reads)
        run_as_child(lambda: _tell(writes), parent)
    os.close(writes)
    said = b""
    try:
        while select.select([reads], [], [], LOOKING_LIMIT_S)[0]:
            if not (part := os.read(reads, 1 << 16)):
                break
            said += part
        else:
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(reads)
        _, status = os.waitpid(pid, 0)
    try:
        return msgspec.json.decode(said, type=Found)
    except msgspec.DecodeError:
        return Found(reason=f"who looked for CUDA devices was {describe_exit(status)}")


def _tell(writes: int) -> None:
    os.write(writes, msgspec.json.encode(_found()))


def _found() -> Found:
    """The same, in a process that may initialise CUDA."""
    try:
        torch.cuda.init()
        numbers = range(torch.cuda.device_count())
        for number in numbers:
            torch.zeros(1, device=f"{CUDA}:{number}")
        if not numbers:
            return Found(reason="this machine has no CUDA device")
        return Found([torch.cuda.get_device_name(number) for number in numbers])
    except (RuntimeError, AssertionError) as error:
        return Found(reason=f"no CUDA device can be used here ({str(error).splitlines()[0]})")
