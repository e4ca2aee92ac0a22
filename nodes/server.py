"""The server's process: the round loop."""

import asyncio
import contextlib
import os
import time
from typing import Any, Protocol

from torch import Tensor, nn

from methods import Fleet as MethodFleet
from nodes.fleet import Fleet
from testbed import meter
from testbed.channel import Channel
from testbed.config import RunConfig
from testbed.transport import ServerTransport


class MethodServer(Protocol):
    model: nn.Module

    async def round(self, fleet: MethodFleet) -> None: ...

    def evaluate(self, images: Tensor, labels: Tensor) -> dict[str, float]: ...


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Trainable and all parameters of a model, as the "ready" event gives them."""
    return {
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "total_parameters": sum(p.numel() for p in model.parameters()),
    }


def serve(
    config: RunConfig,
    method: MethodServer,
    test: tuple[Tensor, Tensor],
    clients: list[str],
    channel: Channel,
) -> None:
    """Run every round of the method, then tell the clients to stop."""
    asyncio.run(_serve(config, method, test, clients, channel))


async def _serve(
    config: RunConfig,
    method: MethodServer,
    test: tuple[Tensor, Tensor],
    clients: list[str],
    channel: Channel,
) -> None:
    address = channel.receive(timeout_s=30)
    report = channel.send
    transport = ServerTransport(address["host"], address["port"], set(clients), report)
    fleet = Fleet(transport, clients, report, config.round_timeout_s)
    _listen(channel, fleet)
    background = [
        asyncio.create_task(fleet.pump()),
        asyncio.create_task(transport.watch_connections()),
    ]
    report({"event": "ready", **count_parameters(method.model)})
    report({"event": "evaluated", "metrics": method.evaluate(*test)})
    # 1. Wait for the clients.
    await _unless_broken(fleet.join(config.join_timeout_s), background)
    for number in range(1, config.rounds + 1):
        # 2. A round of the method.
        began_s = time.monotonic()
        report({"event": "round_started", "round": number})
        fleet.begin(number)
        await _unless_broken(method.round(fleet), background)
        # 3. Evaluate the global model on held-out data.
        report(_round_event(number, began_s, method.evaluate(*test), fleet, len(clients)))
        report({"event": "usage", **meter.usage()})
    # 4. Everybody goes home; from here on a client that ends is not lost.
    report({"event": "done"})
    await fleet.stop()
    for task in background:
        task.cancel()
    transport.close()


def _round_event(
    number: int, began_s: float, metrics: dict[str, float], fleet: Fleet, clients: int
) -> dict[str, Any]:
    return {
        "event": "round",
        "round": number,
        "seconds": round(time.monotonic() - began_s, 6),
        "metrics": metrics,
        "clients_ok": clients - fleet.failed,
        "clients_failed": fleet.failed,
    }


def _listen(channel: Channel, fleet: Fleet) -> None:
    """Take the supervisor's word for which clients are gone; without a supervisor, end."""

    def hear() -> None:
        for line in channel.drain():
            fleet.lose(line["lost"], line["reason"])
        if channel.closed:
            os._exit(1)

    asyncio.get_running_loop().add_reader(channel.fileno(), hear)


async def _unless_broken(step: Any, background: list[asyncio.Task[None]]) -> None:
    """Await ``step``; an error in a background task ends it instead of leaving it waiting."""
    task = asyncio.ensure_future(step)
    done, _ = await asyncio.wait({task, *background}, return_when=asyncio.FIRST_COMPLETED)
    if task not in done:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    for finished in done:
        await finished
