"""Requirements of a run: devices, an all-reduce, images and samples, or the refusal of it."""

from typing import Any

from torch import nn

import methods
from methods.payload.chain import Chain
from methods.payload.coder import Coder
from methods.shared.local_training import learnt
from nodes import memory
from nodes.device_classes import flops_per_s, of_clients
from nodes.workload.partition import check_classes
from nodes.workload.tasks import Task
from testbed.config_error import ConfigError, refusing
from testbed.run.config import DEFAULT_DEVICE_CLASS, DEFAULT_SERVER_CLASS, RunConfig
from testbed.transport import gloo
from testbed.transport.wire import MAX_FRAME_BYTES

MIN_SAMPLES = 8
"""Every client gets at least as many."""
LEAST_FRAME_BYTES, MODELS_A_FRAME = 1 << 28, 4
"""Bounds of a frame: 256 MiB, or four times the model."""


def devices(config: RunConfig, clients: int) -> list[str | None]:
    """Device of the server and of each client; None is a core of this machine.

    Raises:
        ConfigError: naming the field and what would be right.
    """
    server, ours = config.server_device_class, config.device_class
    if config.compute == "modelled":
        server, ours = server or DEFAULT_SERVER_CLASS, ours or DEFAULT_DEVICE_CLASS
    if config.client_memory_mb is not None:
        reason = memory.unsupported()
        if config.compute == "modelled":
            reason = "modelled tensors take no memory; take --compute=real"
        elif config.client_memory_mb < memory.LEAST_MB:
            reason = f"no client trains in less than {memory.LEAST_MB:g} MB"
        if reason is not None:
            raise ConfigError(f"client_memory_mb = {config.client_memory_mb:g}: {reason}")
    if server is not None:
        flops_per_s(server)
    classes: list[str | None] = [None] * clients
    return [server, *(of_clients(ours, clients) if ours is not None else classes)]


def check_clients(config: RunConfig, task: Task, clients: int) -> None:
    """Refuse a draw of more clients than there are, and classes that do not go round them."""
    if config.clients_per_round is not None and config.clients_per_round > clients:
        raise ConfigError(
            f"clients_per_round = {config.clients_per_round}: must be at most the "
            f"{clients} clients of the run"
        )
    if task.partition == "pathological":
        with refusing("partition pathological"):
            check_classes(config.classes_per_client, classes=task.groups, clients=clients)


def coder(config: RunConfig, method: methods.Method, options: Any) -> Coder:
    """The coder of a node of the run, new.

    Raises:
        ConfigError: a stage is none, or the run's method, clock or transport cannot have it.
    """
    chains = {}
    for field, way, texts in _ways(config):
        chain = chains[way] = Chain(texts)
        if not chain:
            continue
        said = f"{field} = {list(texts)}"
        if config.transport == "gloo":
            raise ConfigError(
                f"{said}: an all-reduce adds up what it carries, which codes cannot be"
            )
        if way not in method.stageable:
            able = [name for name in methods.names() if way in methods.load(name).stageable]
            raise ConfigError(
                f"{said}: method {config.method} says of nothing that it sends {way} what it is "
                f"the difference from; those of {', '.join(able)} do"
            )
        if way == "up" and chain.of_weights:
            raise ConfigError(
                f"{said}: weights=true is for stage_down; what clients send goes by its difference "
                "from what they were sent"
            )
        if way == "down" and chain.asks_feedback:
            raise ConfigError(
                f"{said}: feedback and decay are for what clients send: the server has in its "
                "model what a stage left out, and it is in the next difference; leave them out"
            )
        if config.compute == "modelled" and chain.by_values:
            raise ConfigError(
                f"{said}: how many bytes that makes depends on values, which compute=modelled has "
                "none of; take stages of a fixed length, or compute=real"
            )
        if chain.lossy and getattr(options, "dp", "none") == "client":
            raise ConfigError(
                f"{said}: the noise of dp=client is for updates of a bounded norm, which a lossy "
                "stage may exceed; take dp=sample, or stages without loss"
            )
    with refusing(f"method {config.method}"):
        method.check_stages(chains["up"], chains["down"])
    return Coder(chains["up"], chains["down"], config.seed)


def check_adapted(
    config: RunConfig, method: methods.Method, options: Any, skeleton: nn.Module
) -> None:
    """Raises ConfigError where a run without values, or its stages, cannot have what is learnt."""
    if config.compute == "modelled" or config.stage or config.stage_down:
        # Of what has values a method may ask more, once they are there.
        with refusing(f"options of method {config.method}"):
            adapted = method.adapt(options, skeleton)
        check_staged(config, method, options, adapted)


def check_staged(config: RunConfig, method: methods.Method, options: Any, model: nn.Module) -> None:
    """Raises ConfigError where a stage would change nothing of all that it is to take.

    ``model``: the run's, adapted; its values do not matter.
    """
    for field, way, texts in _ways(config):
        if not texts:
            continue
        if method.staged_shapes is not None:
            shapes = method.staged_shapes(options, model, way)
        else:
            shapes = [each.shape for each in learnt(model).values() if each.is_floating_point()]
        with refusing(f"{field} = {list(texts)}: of what method {config.method} sends {way}"):
            Chain(texts).check(shapes)


def _ways(config: RunConfig) -> list[tuple[str, str, tuple[str, ...]]]:
    return [("stage", "up", config.stage), ("stage_down", "down", config.stage_down)]


def check_budget(config: RunConfig, method: methods.Method) -> None:
    """Raises ConfigError where no node counts all bytes that a run's budget is of."""
    if config.budget_mb is None or not (method.peer_to_peer or config.transport == "gloo"):
        return
    whose = f"of method {config.method}" if method.peer_to_peer else "with transport=gloo"
    raise ConfigError(
        f"budget_mb = {config.budget_mb:g}: clients {whose} speak to one another, so that the "
        "server does not see what is spent; leave it out, and take fewer rounds"
    )


def check_all_reduce(config: RunConfig, method: methods.Method, options: Any, clients: int) -> None:
    """Raises ConfigError where clients cannot take the run's mean by an all-reduce."""
    gloo.check()
    if method.all_reduce is None:
        able = [name for name in methods.names() if methods.load(name).all_reduce]
        raise ConfigError(
            f"transport = 'gloo': a round of method {config.method} is no mean of weights, which "
            f"is what an all-reduce takes; those of {', '.join(able)} are"
        )
    with refusing("transport = 'gloo'"):
        method.all_reduce(options)
    if clients < 2:
        raise ConfigError("transport = 'gloo': an all-reduce takes at least 2 clients, not 1")
    if config.clients_per_round is not None:
        raise ConfigError(
            f"clients_per_round = {config.clients_per_round}: with transport=gloo the model is "
            "where the last all-reduce was, so all clients take part in each; leave it out"
        )
    if config.deadline_s is not None:
        raise ConfigError(
            f"deadline_s = {config.deadline_s:g}: an all-reduce waits for all its members; leave "
            "it out, or take transport=zmq"
        )


def most_frame_bytes(model: nn.Module) -> int:
    """Most bytes of one tensor of the run's messages: a few times a large model's, and of a small
    one what a batch's activations may have."""
    tensors = [*model.parameters(), *model.buffers()]
    size = sum(each.numel() * each.element_size() for each in tensors)
    return min(MAX_FRAME_BYTES, max(LEAST_FRAME_BYTES, MODELS_A_FRAME * size))


def training_samples(config: RunConfig, task: Task, clients: int, public: int) -> int | None:
    """How many training samples to draw; None is all there are.

    Raises:
        ConfigError: the data set cannot feed so many clients.
    """
    validation = config.eval_on == "validation"
    there, what = task.train_size, f"{task.sample}s"
    whose = f"{config.dataset}{', less its validation split,' if validation else ''}"
    if config.train_samples is not None:
        least = clients * MIN_SAMPLES + public
        if not least <= config.train_samples <= (there or config.train_samples):
            most = "" if there is None else f" and at most the {there} of {whose}"
            raise ConfigError(
                f"train_samples = {config.train_samples}: must be at least {least}, {MIN_SAMPLES} "
                f"a client and {public} public ones{most}"
            )
        return config.train_samples
    wanted = task.wanted(clients)
    if there is None:
        return (wanted or clients * MIN_SAMPLES) + public
    if public and clients * MIN_SAMPLES + public > there:
        raise ConfigError(
            f"options of method {config.method} ask for {public} public {what}: {whose} "
            f"has {there} training {what}, and {clients} clients need {clients * MIN_SAMPLES} of "
            f"them; take fewer, or --dataset={task.endless}, which draws as many {what} as wanted"
        )
    if clients * MIN_SAMPLES > there:
        raise ConfigError(
            f"clients = {clients}: {whose} has {there} training {what}, enough for "
            f"{there // MIN_SAMPLES} clients of {MIN_SAMPLES}; take fewer clients, or "
            f"--dataset={task.endless}, which draws as many {what} as wanted"
        )
    return None if wanted is None or wanted + public >= there else wanted + public
