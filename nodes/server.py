"""The server's process: the round loop."""

import asyncio
import contextlib
import math
import os
from collections import defaultdict
from collections.abc import Awaitable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec
from msgspec import UNSET
from torch import Tensor, nn

from methods import Fleet as MethodFleet
from methods import Missed
from methods.payload.coder import Coder
from nodes.accelerated_compute import memory
from nodes.checkpoint.store import Keeps
from nodes.compute import Compute
from nodes.fleet import Fleet
from nodes.kinds import EVALUATE, METRICS
from nodes.metrics import Metrics, mean, numbers
from testbed import clock
from testbed import metrics as measures
from testbed.metering import meter
from testbed.metrics import OWN, SCORES, Target
from testbed.processes import heap
from testbed.processes.channel import Channel
from testbed.record import events
from testbed.record.drops import Condensed
from testbed.run.config import RunConfig
from testbed.run.zygote import Address
from testbed.transport.sockets import ServerTransport
from testbed.transport.wire import MAX_FRAME_BYTES

Result = TypeVar("Result")
ALIKE = 0.01
"""How far a model's metrics may be from what they were, on another processor for instance."""


class Resumed(NamedTuple):
    """The server's knowledge of the rounds that are over, beside the method's own state."""

    round: int
    """The last of them."""
    parts: dict[str, int]
    """By client, the last round in which it did its part; who never did is not in it."""
    metrics: Metrics
    """Of the server's own evaluation after the last round."""
    over: bool
    """No further round follows."""
    payload: int = 0
    """Bytes of it in these rounds, of all clients, both ways."""
    because: events.Because | None = None
    """Why no round follows, where none does."""

    @classmethod
    def of(cls, told: Any) -> "Resumed":
        """The same out of what ``_asdict`` gave. Raises ValidationError where it is none."""
        return msgspec.convert(
            [told.get(name, cls._field_defaults.get(name)) for name in cls._fields], cls
        )


class MethodServer(Protocol):
    model: nn.Module | None

    async def round(self, fleet: MethodFleet) -> None: ...

    def evaluate(self, inputs: Tensor, targets: Tensor) -> dict[str, float]: ...


def count_parameters(model: nn.Module | None) -> dict[str, Any]:
    """Trainable and all parameters of a model, as the "ready" event gives them; none of None."""
    if model is None:
        return {}
    return {
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "total_parameters": sum(p.numel() for p in model.parameters()),
    }


async def serve(
    config: RunConfig,
    method: MethodServer,
    test: tuple[Tensor, Tensor] | None,
    samples: Mapping[str, int],
    clients_evaluate: bool,
    compute: Compute,
    channel: Channel,
    checkpointer: Keeps | None = None,
    past: Resumed | None = None,
    peer_to_peer: bool = False,
    test_size: int = 0,
    coder: Coder | None = None,
    most_frame_bytes: int = MAX_FRAME_BYTES,
) -> None:
    """Run every round of the method, then tell the clients to stop.

    ``test``: what models are evaluated on; None: on nothing. ``samples``: training samples of each
    client, of all by name. ``clients_evaluate``: each client sends its own metrics after a round.
    ``checkpointer``: of the server's state after each round. ``past``: of the rounds before this
    process, where the run goes on from them. ``peer_to_peer``: clients speak to one another.
    ``test_size``: images that ``test`` is taken of. ``coder``: of the server's messages.
    ``most_frame_bytes``: as of ServerTransport.
    """
    address: Address = channel.receive(timeout_s=30)
    report = Condensed(channel.send)
    transport = ServerTransport(
        address.host,
        address.port,
        samples.keys(),
        report,
        config.congestion,
        listener=channel.descriptors.popleft() if channel.descriptors else None,
        keys=address.keys,
        since_ns=address.began_ns,
        most_frame_bytes=most_frame_bytes,
    )
    fleet = Fleet(
        transport,
        samples,
        report,
        config.round_timeout_s,
        per_round=config.clients_per_round,
        seed=config.seed,
        compute=compute,
        deadline_s=config.deadline_s,
        peer_to_peer=peer_to_peer,
        coder=coder,
    )
    _listen(channel, fleet)
    background = [
        asyncio.create_task(fleet.pump()),
        asyncio.create_task(transport.watch_connections()),
    ]
    report(events.Ready(**count_parameters(method.model)))
    metrics = numbers(method.evaluate(*test)) if test else {}
    if past is None:
        past = Resumed(0, {}, {}, over=False)
        images = len(test[1]) if test else 0
        of = test_size if test else 0
        report(events.Evaluated(metrics=metrics, split=config.eval_on, images=images, of=of))
        if config.aim and config.aim.metric in SCORES and not clients_evaluate:
            check_there(metrics, config.aim)
    else:
        check_alike(metrics, past)
    # 1. Wait for the clients.
    await _unless_broken(fleet.join(config.join_timeout_s), background)
    report(events.Joined(clients=fleet.joined))
    clock.follow(True)
    first, before = past.round + 1, past.payload - transport.payload_bytes
    for number in range(first, 1 if past.over else config.rounds + 1):
        # 2. A round of the method.
        await _unless_broken(fleet.attended(), background)
        began_s = clock.monotonic()
        report(events.RoundStarted(round=number))
        fleet.begin(number)
        compute.rest()
        await _unless_broken(method.round(fleet), background)
        await compute.settled()
        ended_s = clock.monotonic()
        # 3. Evaluate the global model on held-out data, and the clients' own where they have such.
        own: Metrics = {}
        if test:
            # Where the model never comes here, a client has to be asked.
            ask = getattr(method, "ask_metrics", None)
            asked = await _unless_broken(ask(fleet), background) if ask else None
            if asked is None:
                with clock.beside():
                    own = numbers(method.evaluate(*test))
            else:
                own = asked
        metrics = dict(own)
        compute.rest()
        told: Metrics = {}
        if clients_evaluate and test:
            told = await _unless_broken(_clients_metrics(fleet), background)
        metrics |= told
        if number == first and (told or not clients_evaluate):
            check_there(metrics, config.aim)
        evaluated_s = clock.monotonic()
        payload = before + transport.payload_bytes
        because = ended(config, number, metrics, payload)
        over = because is not None
        parts = past.parts | fleet.took_part
        past = Resumed(number, parts, own, over, payload, because)
        with clock.beside():
            if checkpointer is not None:
                checkpointer.save(number, **past._asdict())
            report(
                events.Round(
                    round=number,
                    seconds=round(ended_s - began_s, 6),
                    evaluation_s=round(evaluated_s - ended_s, 6),
                    metrics=metrics,
                    clients_ok=fleet.succeeded,
                    clients_failed=fleet.failed,
                )
            )
            if facts := compute.facts():
                report(events.Computed(round=number, **facts))
            heap.release()
            report(events.Usage(**meter.usage(), **memory()))
        if over:
            break
    # 4. Everybody goes home; from here on a client that ends is not lost.
    clock.follow(False)
    report(events.Done(because=past.because or UNSET))
    await fleet.stop()
    for task in background:
        task.cancel()
    transport.close()


def ended(config: RunConfig, number: int, metrics: Metrics, payload: int) -> events.Because | None:
    """Reason why no round follows that of this ``number``; ``payload``: bytes of it until then."""
    if reaches(metrics, config.aim):
        return "target"
    if config.budget_mb is not None and payload >= config.budget_mb * 1e6:
        return "budget"
    return "rounds" if number == config.rounds else None


def reaches(metrics: Metrics, target: Target | None) -> bool:
    """Whether a round's metrics end the run: the global model's, or else the clients' mean."""
    return target is not None and target.reached_by(measures.value(metrics, target.metric))


def check_there(metrics: Metrics, target: Target | None) -> None:
    """Raise RuntimeError where a run that is evaluated has no metric of its target's name."""
    if target is None or not metrics or target.metric in metrics or OWN + target.metric in metrics:
        return
    raise RuntimeError(
        f"target = '{target}': the run has no metric {target.metric}, and so never reaches it; it "
        f"has {', '.join(metrics)}"
    )


def check_alike(metrics: Metrics, past: Resumed) -> None:
    """Raise RuntimeError where the model that the run goes on with is not the one it had."""
    for name, value in numbers(past.metrics).items():
        now = metrics.get(name, math.nan)
        neither = name in metrics and math.isnan(now) and math.isnan(value)
        if not neither and not math.isclose(now, value, rel_tol=ALIKE, abs_tol=ALIKE):
            raise RuntimeError(
                f"{name} after round {past.round} was {value:.6g} and is {now:.6g} now: the model, "
                "the data or the code is another"
            )


async def _clients_metrics(fleet: Fleet) -> Metrics:
    """The mean over clients of what each says of its own model."""
    told: dict[str, list[float]] = defaultdict(list)
    fleet.conclude()
    asked = list(fleet.took_part)
    for client in asked:
        with contextlib.suppress(Missed):
            await fleet.send(client, EVALUATE, {})
    async for message in fleet.gather(METRICS, clients=asked):
        for name, value in numbers(message.details).items():
            told[f"client_{name}"].append(value)
    return {name: mean(values) for name, values in sorted(told.items())}


def _listen(channel: Channel, fleet: Fleet) -> None:
    """Take the supervisor's word for which clients are gone; without a supervisor, end."""

    def hear() -> None:
        for event in channel.drain():
            if isinstance(event, events.Lost):
                fleet.lose(event.peer, event.reason)
            elif isinstance(event, events.Away):
                fleet.members.leave(event.node, f"{event.at_s:g} s")
            else:
                fleet.members.come_back(event.node)
        if channel.closed:
            os._exit(1)

    asyncio.get_running_loop().add_reader(channel.fileno(), hear)
    # Some may have come with the address.
    hear()


async def _unless_broken(step: Awaitable[Result], background: list[asyncio.Task[None]]) -> Result:
    """Await ``step``; an error in a background task ends it instead of leaving it waiting."""
    task = asyncio.ensure_future(step)
    done, _ = await asyncio.wait({task, *background}, return_when=asyncio.FIRST_COMPLETED)
    if task not in done:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    for finished in done - {task}:
        await finished
    return await task
