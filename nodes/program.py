"""The program of a run's processes: prepared once in the zygote, then one node each."""

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor

import methods
from methods import Shard
from methods.shared import flops
from methods.shared.local_training import warm_up
from nodes import (
    accelerators,
    evaluation,
    generators,
    memory,
    method_options,
    products,
    requirements,
)
from nodes.accelerated_compute import Accelerated, of_cuda
from nodes.allreduce.client import ReducingClient
from nodes.allreduce.server import ReducingServer
from nodes.checkpoint import Json, Snapshot
from nodes.checkpoint.store import Keeping, Keeps
from nodes.client import participate
from nodes.compute import Compute, Modelled, noise
from nodes.device_classes import flops_per_s, memory_mb
from nodes.host_coder import HostCoder
from nodes.optimizers import without_compiler
from nodes.peer import AMONG_CLIENTS
from nodes.requirements import MIN_SAMPLES
from nodes.server import Resumed, serve
from nodes.spells import least_of_first
from nodes.throttled_compute import STEP_IMAGES, Stretched, host_flops_per_s
from nodes.workload import models, splits, tasks
from nodes.workload.dataset import TEXTS, Dataset
from nodes.workload.partition import partition
from testbed import clock
from testbed.config_error import ConfigError, refusing
from testbed.metering import meter
from testbed.network.topology import PORT, Node, client_address, client_name
from testbed.processes import heap
from testbed.processes.channel import Channel
from testbed.processes.confinement import Reach
from testbed.record import host_load
from testbed.record.events import HostRate
from testbed.run.config import RunConfig, choose
from testbed.run.feasible import Traffic
from testbed.seeds import derive


class FineTuning:
    """Federated fine-tuning of one model on one data set by one method."""

    def __init__(self, config: RunConfig, clients: int, *, any_device: bool = False) -> None:
        """Check the run's model, data and method options.

        ``any_device``: let a device be faster than a core of this machine, and late.

        Raises:
            ConfigError: naming the field, the value and what would be right.
        """
        choose("method", config.method, methods.names())
        self.task = task = tasks.of(config, clients)
        self._devices = requirements.devices(config, clients)
        requirements.check_clients(config, task, clients)
        self.places = accelerators.places(config, clients)
        self._modelled = config.compute == "modelled"
        self._device = "meta" if self._modelled else "cpu"
        self._real_text = config.dataset in TEXTS and not self._modelled
        self._run = config
        self._any_device = any_device
        self._clients = clients
        self._method = methods.load(config.method)
        self._options = method_options.of(config, self._method)
        if config.transport == "gloo":
            requirements.check_all_reduce(config, self._method, self._options, clients)
        requirements.check_budget(config, self._method)
        requirements.coder(config, self._method, self._options)
        self._public_samples = self._method.public_samples(self._options)
        held_out = self._method.public_source(self._options) == "held-out"
        self._held_out = self._public_samples if held_out else 0
        self._samples = requirements.training_samples(config, task, clients, self._held_out)
        evaluation.check(config, task)
        evaluation.check_local(config, self._method)
        evaluation.check_target(config, task, self._method, self._options)
        skeleton = task.skeleton()
        with refusing(f"method {config.method} cannot train model {config.model}"):
            self._method.check(self._options, skeleton)
        requirements.check_adapted(config, self._method, self._options, skeleton)
        with refusing(f"options of method {config.method}"):
            # Once the data are there they are asked again, for what each has.
            least = splits.left(MIN_SAMPLES, config.local_test)
            self._method.check_samples(self._options, [least] * clients)
        self._shards: list[np.ndarray] = []
        self._local_tests: list[np.ndarray] = []
        self._public: Tensor
        self._flops: tuple[methods.Flops, ...] | None = None
        """Of a client's part in a round: for each sample that it has, for each class, and beside
        these; None: the method does not say."""
        self._keeping: Keeping | None = None
        self._host_rate: float | None = None
        """Operations a second that a core of this machine reaches; None: nobody asks."""
        self._core_rate: float | None = None
        """The same by fewer steps, for what only has to be about right."""
        self._data: Dataset
        self._test: tuple[Tensor, Tensor] | None = None
        """What models are evaluated on; None: nothing is learnt."""
        self._model: torch.nn.Module
        self._noise: Tensor

    @property
    def model(self) -> str:
        """The model's name, the same in whatever folder it is asked for."""
        return models.absolute(self._run.model)

    @property
    def options(self) -> dict[str, object]:
        """Every option of the method, defaults included; those that are None are left out."""
        found = msgspec.to_builtins(self._options)
        assert isinstance(found, dict)
        return {name: value for name, value in found.items() if value is not None}

    @property
    def peer_to_peer(self) -> bool:
        """Whether clients speak to one another."""
        return self._method.peer_to_peer or self._run.transport == "gloo"

    @property
    def asynchronous(self) -> bool:
        """Whether a round's updates may answer an earlier round's model."""
        return self._method.asynchronous

    def keep(self, keeping: Keeping) -> None:
        """Have the nodes keep their states so, and go on from those that are kept."""
        self._keeping = keeping

    def prepare(self) -> Traffic | None:
        with products.by_onednn(self._real_text):
            return self._prepare()

    def _prepare(self) -> Traffic | None:
        torch.set_num_threads(1)
        without_compiler()
        run = self._run
        self._data = self.task.load(self._samples)
        with refusing(f"options of method {run.method}"):
            held_out, private = splits.hold_out(
                len(self._data.train_targets), self._held_out, seed=run.seed
            )
        self._public = self._inputs(held_out)
        if self._public_samples > self._held_out:
            shape = self._data.train_inputs.shape[1:]
            with refusing(f"options of method {run.method}"):
                drawn = self.task.drawn(self._public_samples, shape)
            self._public = torch.from_numpy(drawn).to(self._device)
        with refusing(f"partition {self.task.partition}"):
            parts = partition(
                self._data.train_groups[private],
                self._clients,
                kind=self.task.partition,
                alpha=run.alpha,
                classes_per_client=run.classes_per_client,
                seed=run.seed,
                minimum=MIN_SAMPLES,
            )
        own = [private[part] for part in parts]
        self._shards, self._local_tests = splits.local_tests(own, run.local_test, seed=run.seed)
        with refusing(f"options of method {run.method}"):
            self._method.check_samples(self._options, [len(own) for own in self._shards])
        # Adapters draw their first values from the global generators.
        generators.seed_all(run.seed, "model")
        if self._modelled:
            model = self.task.skeleton()
            self._noise = noise(run.seed)
        else:
            model = self.task.build()
        with refusing(f"options of method {run.method}"):
            self._model = self._method.adapt(self._options, model)
        one = self._inputs(np.arange(1))
        self._test = None if self._modelled else self._evaluated(one)
        with self._compute(0).active() if self._modelled else nullcontext():
            warm_up(*self.task.small(self._device))
        some = self._inputs(np.arange(min(STEP_IMAGES, len(self._data.train_targets))))
        if not self._modelled and any(name is not None for name in self._devices):
            self._core_rate = self._host_rate = host_flops_per_s(self._model, some)
            self._refuse_faster_devices()
        elif not self._modelled and run.dilation == "elastic":
            self._core_rate = host_flops_per_s(self._model, some, steps=1)
        method = self._method
        if method.client_flops and not self._modelled:
            counts = [method.client_flops, method.class_flops, method.fixed_flops]
            self._flops = tuple(each(self._options, self._model, one) for each in counts)
        meter.usage()
        traffic = self._method.traffic
        if traffic is None:
            return None
        up, down = traffic(self._options, self._model)
        # How many fewer bytes stages make of that, only messages tell.
        up, down = (0 if run.stage else up), (0 if run.stage_down else down)
        if run.transport == "gloo":
            share = 2 * (self._clients - 1) / self._clients
            return Traffic(int(share * up), int(share * down), among_clients=True)
        return Traffic(up, down, among_clients=self._method.peer_to_peer)

    def reach(self, node: Node, port: int) -> Reach:
        """Data, model and states, and the one port; among clients, all of their network's."""
        model = Path(self.model)
        theirs = self.task.folder, model if model.is_absolute() else None
        reads = [each for each in theirs if each]
        devices = accelerators.device_files() if self.places[node.index] else ()
        own, others = ((port,), ()) if node.index == 0 else ((), (port,))
        folder = None if self._keeping is None else self._keeping.folder
        if self.peer_to_peer:
            return Reach(tuple(reads), devices, folder)
        return Reach(tuple(reads), devices, folder, own, others)

    def run_node(self, node: Node, channel: Channel) -> None:
        compute = self._compute(node.index)
        clock.take_place(node.index, compute.woken)
        device = self._devices[node.index]
        limit_mb = None
        if node.index and not self._modelled:
            limit_mb = self._run.client_memory_mb or (memory_mb(device) if device else None)
        if self._real_text and limit_mb is None:
            heap.keep_steps()
        with (
            compute.active(),
            products.by_onednn(self._real_text),
            memory.limited(limit_mb, f"{device or 'client'}'s", channel),
        ):
            self._run_node(node, compute, channel)

    def _run_node(self, node: Node, compute: Compute, channel: Channel) -> None:
        run = self._run
        generators.seed_all(run.seed, node.name)
        # Of a method's own draws in this node.
        seed = derive(run.seed, "method", node.name)
        shard = self._shard(node.index)
        # What it knows is kept as part of what the method knows.
        coder = requirements.coder(run, self._method, self._options)
        if isinstance(compute, Accelerated):
            self._model.to(compute.place.device)
            shard, self._test = compute.place.moved((shard, self._test))
            coder = HostCoder(coder, compute.place)
            warm_up(*compute.place.moved(self.task.small("cpu")))
        if node.index == 0:
            heap.keep_large()
            own = zip(self._addresses(), self._shards, strict=True)
            samples_of = {name: len(chosen) for (name, _), chosen in own}
            if self._host_rate is not None:
                gflops = round(self._host_rate / 1e9, 3)
                channel.send(HostRate(gflops=gflops))
            server = self._method.Server(self._options, self._model, shard, seed)
            if run.transport == "gloo":
                server = ReducingServer(server, list(samples_of))
            server.stages = coder.lasting
            checkpointer, told = self._kept(node, server, shard, channel)
            coder.lasting = server.stages
            past = None if told is None else Resumed.of(told)
            clock.run(
                serve(
                    run,
                    server,
                    self._test,
                    samples_of,
                    self._clients_evaluate,
                    compute,
                    channel,
                    checkpointer,
                    past,
                    peer_to_peer=self._method.peer_to_peer,
                    test_size=len(self._data.test_targets),
                    coder=coder,
                    most_frame_bytes=requirements.most_frame_bytes(self._model),
                )
            )
            return
        client = self._method.Client(self._options, self._model, shard, seed)
        client.stages = coder.lasting
        checkpointer, _ = self._kept(node, client, shard, channel)
        coder.lasting = client.stages
        neighbours = {}
        if self._method.peer_to_peer:
            neighbours = {name: (address, PORT) for name, address in self._addresses()}
        samples = len(shard.targets)
        if run.transport == "gloo":
            others = {address: name for name, address in self._addresses()}
            limit_s = AMONG_CLIENTS * run.round_timeout_s
            client = ReducingClient(
                *(client, samples, node.address, others, limit_s),
                *(compute, channel.send, run.congestion),
            )
        asked = {"": self._test, "local_": shard.test}
        tests = {whose: images for whose, images in asked.items() if images}
        participate(
            *(run, client, tests, node.name, neighbours, samples),
            partial(self._round_flops, node.index),
            *(compute, channel, checkpointer, coder),
            requirements.most_frame_bytes(self._model),
        )

    def _addresses(self) -> Iterator[tuple[str, str]]:
        """Every client's name and address."""
        numbers = range(1, self._clients + 1)
        return ((client_name(number), client_address(number)) for number in numbers)

    def _kept(
        self, node: Node, method: object, shard: Shard, channel: Channel
    ) -> tuple[Keeps | None, Json]:
        """A node's keeper of states, and the facts told with the state that it goes on from.

        Both may be None: nothing is to be kept, or the node begins anew.
        """
        if self._keeping is None:
            return None, None
        snapshot = Snapshot(method, self._options, shard)
        return self._keeping.of_node(node.name, self._clients + 1, snapshot, channel)

    def _shard(self, number: int) -> Shard:
        chosen = self._shards[number - 1] if number else np.arange(0)
        held = self._local_tests[number - 1] if number else chosen
        test = self._samples_of(held) if len(held) else None
        return Shard(*self._samples_of(chosen), self._public, number, test)

    def _samples_of(self, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
        return self._inputs(chosen), torch.from_numpy(self._data.train_targets[chosen])

    @property
    def _clients_evaluate(self) -> bool:
        """Whether clients have models of their own, which each evaluates."""
        return hasattr(self._method.Client, "evaluate")

    def _evaluated(self, one: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets that models are evaluated on; ``one``: a batch of one."""
        there = len(self._data.test_targets)
        count = evaluation.count(
            self._run.eval_samples,
            there,
            self.task.least_evaluated,
            lambda: flops.forward(self._model, one),
            1 + self._clients * self._clients_evaluate,
        )
        some = slice(None) if count == there else evaluation.chosen(count, there)
        inputs = torch.from_numpy(self._data.test_inputs[some])
        return inputs, torch.from_numpy(self._data.test_targets[some])

    def _inputs(self, chosen: np.ndarray) -> Tensor:
        """These of the training inputs; without values where compute is modelled."""
        inputs = self.task.inputs(self._data.train_inputs[chosen[:1] if self._modelled else chosen])
        if self._modelled:
            return inputs.new_empty((len(chosen), *inputs.shape[1:]), device=self._device)
        return inputs

    def _compute(self, node: int) -> Compute:
        device = self._devices[node]
        if self._modelled and device is not None:
            return Modelled(flops_per_s(device), self._noise)
        if (place := self.places[node]) is not None:
            return of_cuda(place, derive(self._run.seed, "accelerator", node))
        ratio = self._ratio(device)
        first, second = (self._round_flops(node, number) if node else None for number in (1, 2))
        if first is None or second is None or self._core_rate is None:
            return Stretched(ratio)
        return Stretched(ratio, first_s=ratio * least_of_first(first, second) / self._core_rate)

    def _round_flops(self, node: int, number: int) -> int | None:
        """Floating-point operations of a client's part in a round, where the method tells."""
        if self._flops is None:
            return None
        shard = self._shards[node - 1]
        times = len(shard), len(np.unique(self._data.train_groups[shard])), 1
        counts = (flops.of_round(own, number) for own in self._flops)
        return round(sum(count * often for count, often in zip(counts, times, strict=True)))

    def _ratio(self, device: str | None) -> float:
        """How many times slower than a core of this machine a device is."""
        if device is None or self._host_rate is None:
            return 1.0
        return self._host_rate / flops_per_s(device)

    def _refuse_faster_devices(self) -> None:
        """Raises ConfigError where a device is faster than the core that is to stand for it."""
        fastest = min(self._devices, key=self._ratio)
        ratio = self._ratio(fastest)
        elastic = self._run.dilation == "elastic"
        if ratio * clock.dilation() < 1 and not (self._any_device or elastic):
            least = host_load.rounded_up(1.1 / ratio)
            fixed = f", or at least {least:g}" if least <= clock.MAX_DILATION else ""
            raise ConfigError(
                f"{fastest} trains {1 / ratio:.3g} times as fast as a core here, which reaches "
                f"{(self._host_rate or 0) / 1e9:.3g} GFLOP/s on {self._run.model}: "
                f"--dilation=elastic over userspace or loopback links{fixed}"
            )
