"""A method's objects, out of their state and into new ones: the further rounds are the same."""

from __future__ import annotations

import enum
import json
import random
import threading
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import few
import msgspec
import numpy as np
import pytest
import torch
from copied import copied
from in_process import Network, play, shards
from made_events import Reported
from made_text import TEXT_ALONE, language_model, text_shards
from torch import Tensor, nn

import methods
from methods import Shard, fedavg, kdfft
from methods.split_model import cut
from nodes.checkpoint import Snapshot, Unkept
from nodes.checkpoint.store import Checkpointer
from nodes.workload.models import ModelSpec, VisionTransformer

SPEC = ModelSpec(side=4, patch=2, width=8, depth=3, heads=2)
SHAPE, CLASSES = (1, 4, 4), 3
SAMPLES = {"client-1": 5, "client-2": 9}
PUBLIC = torch.rand(12, *SHAPE, generator=torch.Generator().manual_seed(2))
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "fedavg": [
        {},
        {"optimizer": "sgd"},
        {"dp": "sample", "dp_noise": 1.0},
        {"dp": "client", "dp_epsilon": 20.0, "dp_rounds": 3},
    ],
    "dispfl": [{}, {"topology": "ring", "regrow": "gradient"}],
    "fedcompress": [{"distill_epochs": 1}, {"representations": "gram", "distill_epochs": 1}],
    "fedpruning": [{"structures": "both", "prune_rounds": 3}, {"layers": "uniform"}],
    "fedkseed": [
        {"candidates": 64, "steps": 5},
        {"candidates": 64, "steps": 5, "sampling": "importance"},
    ],
    "feddm": [{"iterations": 3, "server_epochs": 2}],
    "fedsp": [
        {"align_steps": 3, "local_steps": 3, "batch_size": 4, **more}
        for more in ({}, {"projection": 5, "rate_rounds": 5})
    ],
    "fedptr": [{"projection": projection} for projection in ("synthetic", "projected", "client")],
    "fedlite": [{"centroids": 4}, {"centroids": 4, "quantise_down": True}],
    "fedprox": [
        {"variant": "full"},
        {"dp": "sample", "dp_noise": 1.0},
        {"local_epochs": 3, "straggler_share": 0.9},
    ],
    "fedavgm": [{}, {"nesterov": True, "dp": "client", "dp_noise": 1.0}],
    "fedadam": [{"rule": rule} for rule in ("adam", "yogi", "adagrad")],
    "diloco": [
        {"local_steps": 3, "cosine_rounds": 4, "warmup_steps": 3},
        {"local_steps": 3, "optimizer": "sgd"},
    ],
    "fedpeft": [
        {"variant": variant} for variant in ("full", "head", "adapter", "prompt", "lora", "ffalora")
    ],
    "fedmd": [{"depths": "2,3"}],
    "fedkd": [{}, {"student_blocks": 1, "rank": 1}],
    "flexlora": [{"ranks": "4,2"}],
    "flora": [{"ranks": "4,2"}, {"ranks": "4,2", "downlink": "least"}],
    "hetlora": [{"ranks": "4,2"}, {"ranks": "4,2", "self_prune": True}],
    "kdfft": [{}, {"student": False, "sharpen": True}],
    "split": [{}, {"labels": "private", "tail_blocks": 1}],
    "splitfed": [{"variant": "v1"}, {"variant": "v2"}],
    "salientgrads": [{}, {"saliency_batches": 2, "batch_size": 4}],
    "sfprompt": [{}, {"transfer": "cls"}],
}
SMALL = {"public_samples": 12, "public_batch": 6}
ASYNCHRONOUS = [name for name in methods.names() if methods.load(name).asynchronous]
CASES = [
    (name, own)
    for name in methods.names()
    for own in OPTIONS.get(name, [{}])
    if name not in ASYNCHRONOUS
]


class Nodes:
    """A server and two clients, each with its Snapshot, as separate processes have them."""

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        method = methods.load(name)
        fields = method.Config.__struct_fields__
        small = {key: value for key, value in SMALL.items() if key in fields}
        self.config = few.config(name, small | options)
        torch.manual_seed(0)
        if name in TEXT_ALONE:
            plain: nn.Module = language_model()
            parts = text_shards(SAMPLES, public=len(PUBLIC))
        else:
            plain = VisionTransformer(SPEC, CLASSES)
            parts = {
                name: shard._replace(public=PUBLIC)
                for name, shard in shards(SAMPLES, SHAPE, CLASSES).items()
            }
        model = method.adapt(self.config, plain)
        inputs, targets, public, *_ = parts["client-1"]
        nothing = Shard(inputs[:0], targets[:0], public, 0)
        self.server = method.Server(self.config, copied(model), nothing, 3)
        self.clients = {
            name: method.Client(self.config, copied(model), shard, 10 + shard.client)
            for name, shard in parts.items()
        }
        everyone = {"server": (self.server, nothing)}
        everyone |= {name: (client, parts[name]) for name, client in self.clients.items()}
        self.snapshots = {
            name: Snapshot(own, self.config, shard) for name, (own, shard) in everyone.items()
        }

    def keepers(self, folder: Path, events: Reported) -> dict[str, Checkpointer]:
        return {
            name: Checkpointer(folder, "1a", name, len(self.snapshots), snapshot, events)
            for name, snapshot in self.snapshots.items()
        }

    def play(self, first: int, last: int) -> Network:
        return play(self.server, self.clients, SAMPLES, last, first=first)


def sent(network: Network) -> dict[tuple[str, ...], list[tuple[str, dict[str, Tensor], Any]]]:
    """By way, client and sender, messages in their order."""
    found: dict[tuple[str, ...], list[tuple[str, dict[str, Tensor], Any]]] = {}
    for way, client, message in network.log:
        own = (message.kind, message.tensors, message.details)
        found.setdefault((way, client, message.sender), []).append(own)
    return found


def check_equal(one: Network, other: Network) -> None:
    ours, theirs = sent(one), sent(other)
    assert ours.keys() == theirs.keys()
    for key, messages in ours.items():
        assert len(messages) == len(theirs[key])
        for own, their in zip(messages, theirs[key], strict=True):
            assert (own[0], own[2]) == (their[0], their[2])
            assert own[1].keys() == their[1].keys()
            assert all(torch.equal(own[1][name], their[1][name]) for name in own[1]), key


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_method_goes_on_from_its_files_as_if_nothing_had_happened(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    killed, resumed = Nodes(name, options), Nodes(name, options)
    killed.play(1, 2)
    events = Reported()
    for checkpointer in killed.keepers(tmp_path, events).values():
        checkpointer.save(2)
    assert [event["event"] for event in events] == ["saved"] * 3
    # What it would have done had it not been killed.
    after = killed.play(3, 4)
    for checkpointer in resumed.keepers(tmp_path, events).values():
        checkpointer.load(2)
    check_equal(after, resumed.play(3, 4))
    told = [nodes.snapshots["server"].take()[1] for nodes in (killed, resumed)]
    assert told[0] == told[1]


@pytest.mark.parametrize("name", ASYNCHRONOUS)
def test_an_asynchronous_method_has_what_it_had(name: str, tmp_path: Path) -> None:
    killed, resumed = (Nodes(name, {}) for _ in range(2))
    killed.play(1, 2)
    events = Reported()
    for checkpointer in killed.keepers(tmp_path, events).values():
        checkpointer.save(2)
    # Which answer comes first is no question of the state.
    for node, checkpointer in resumed.keepers(tmp_path, events).items():
        checkpointer.load(2)
        (tensors, told), (ours, own) = (n.snapshots[node].take() for n in (killed, resumed))
        assert own == told and ours.keys() == tensors.keys()
        # Torch's own generator is one here, and each node's elsewhere.
        for key in ours.keys() - {"torch"}:
            assert torch.equal(ours[key], tensors[key])
    resumed.play(3, 4)


def test_what_a_round_overwrites_is_not_kept(tmp_path: Path) -> None:
    nodes = Nodes("fedavg", {})
    nodes.play(1, 1)
    server, client = (nodes.snapshots[name].take()[0] for name in ("server", "client-1"))
    assert {name for name in server if name.startswith(".model.")} == {
        f".model.{name}" for name, _ in nodes.server.model.named_parameters()
    }
    assert set(client) == {".generator.state", "torch"}


# A made-up method


class Kind(enum.Enum):
    FAST = 1
    SLOW = 2


class Pair(NamedTuple):
    number: int
    tensor: Tensor


class Config(msgspec.Struct, frozen=True):
    rate: float = 0.1


class Side:
    def __init__(self) -> None:
        self.spent = Counter({0.5: 1})
        self.made_later: Side | None = None


class Table(dict[str, int]):
    pass


class Guarded:
    """Its code says so where it is run."""

    ran: ClassVar[list[str]] = []

    def __new__(cls) -> Guarded:
        cls.ran.append("__new__")
        return super().__new__(cls)

    @property
    def watched(self) -> int:
        self.ran.append("watched")
        return 1


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        self.steps = 0


class Server:
    received: tuple[str, ...] = ()

    def __init__(self, config: Config, shard: Shard) -> None:
        generator = torch.Generator().manual_seed(1)
        self.config = config
        self.shard = shard
        self.some = shard.inputs[1:3]
        self.model = Layer()
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.copy_(torch.rand(parameter.shape, generator=generator))
        self.model.norm.weight.requires_grad_(False)
        self.model.norm.bias.requires_grad_(False)
        self.parts = {"first": [self.model.linear], "weights": self.model.linear.weight}
        self.optimizer = torch.optim.Adam([self.model.linear.weight], lr=0.1)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 1)
        self.hidden = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1, momentum=0.9)
        self.side = Side()
        self.loss = nn.functional.cross_entropy
        self.by_client: dict[str, Any] = defaultdict(list)
        self.nothing = None
        self.values: Any = None


def data() -> Shard:
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(4, 2, generator=generator)
    return Shard(images, torch.zeros(4, dtype=torch.int64), images[:0], 1)


CONFIG = Config()


def made() -> tuple[Server, Snapshot]:
    shard = data()
    server = Server(CONFIG, shard)
    return server, Snapshot(server, CONFIG, shard)


def through(server: Server, snapshot: Snapshot) -> Server:
    """A new one, with what JSON and files leave of the state."""
    tensors, told = snapshot.take()
    fresh, other = made()
    other.put({n: t.detach().clone() for n, t in tensors.items()}, json.loads(json.dumps(told)))
    return fresh


def test_a_clients_own_test_samples_are_data_too() -> None:
    shard = data()._replace(test=(torch.rand(3, 2), torch.zeros(3, dtype=torch.int64)))
    server = Server(CONFIG, shard)
    assert shard.test is not None
    server.values = list(shard.test)
    tensors, _ = Snapshot(server, CONFIG, shard).take()
    assert not any(name.startswith(".values") for name in tensors)


def train(server: Server) -> None:
    server.model.train()
    server.model.steps += 1
    server.optimizer.zero_grad()
    server.model.norm(server.model.linear(server.shard.inputs)).square().sum().backward()
    server.optimizer.step()
    server.schedule.step()


def test_modules_optimizers_and_schedules_go_on() -> None:
    server, snapshot = made()
    train(server)
    fresh = through(server, snapshot)
    for each in (server, fresh):
        train(each)
    for name, value in server.model.state_dict().items():
        assert torch.equal(value, fresh.model.state_dict()[name]), name
    assert fresh.schedule.get_last_lr() == server.schedule.get_last_lr() != [0.1]
    assert fresh.model.steps == 2
    assert fresh.parts["first"][0] is fresh.model.linear
    assert fresh.parts["weights"] is fresh.model.linear.weight
    assert fresh.optimizer.param_groups[0]["params"][0] is fresh.model.linear.weight
    assert fresh.shard is not server.shard and fresh.some.data_ptr() != server.some.data_ptr()


def test_frozen_weights_are_kept_only_where_they_were_written_to() -> None:
    server, snapshot = made()
    assert ".model.norm.weight" not in snapshot.take()[0]
    with torch.no_grad():
        server.model.norm.weight.mul_(3)
    server.model.norm.bias.requires_grad_(True)
    server.model.linear.weight.requires_grad_(False)
    assert {".model.norm.weight", ".model.norm.bias"} <= snapshot.take()[0].keys()
    fresh = through(server, snapshot)
    assert fresh.model.norm.weight.tolist() == server.model.norm.weight.tolist()
    assert fresh.model.norm.bias.requires_grad and not fresh.model.norm.weight.requires_grad
    assert not fresh.model.linear.weight.requires_grad


def test_buffers_of_what_is_received_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "received", ("model",))
    server, snapshot = made()
    train(server)
    tensors, _ = snapshot.take()
    assert {name for name in tensors if name.startswith(".model")} == {
        ".model.norm.running_mean",
        ".model.norm.running_var",
        ".model.norm.num_batches_tracked",
    }


def test_modes_of_modules_are_kept() -> None:
    server, snapshot = made()
    server.model.eval()
    assert not any(each.training for each in through(server, snapshot).model.modules())
    server.model.norm.train()
    model = through(server, snapshot).model
    assert (model.training, model.norm.training, model.linear.training) == (False, True, False)


VALUES: dict[str, Callable[[], Any]] = {
    "scalars": lambda: [None, True, 3, 2**80, 0.1, float("inf"), "text"],
    "containers": lambda: {"a": (1, [2, {3}]), 4: frozenset("x"), (5, 6.0): deque([7], maxlen=2)},
    "ordered": lambda: OrderedDict([("b", 1), ("a", 2)]),
    "counter": lambda: Counter({0.25: 3}),
    "enum": lambda: Kind.SLOW,
    "array": lambda: np.arange(6, dtype=np.uint32).reshape(2, 3),
    "number of numpy": lambda: np.float32(0.1),
}


@pytest.mark.parametrize("case", list(VALUES))
def test_values_come_back_as_they_were(case: str) -> None:
    server, snapshot = made()
    server.values = VALUES[case]()
    found = through(server, snapshot).values
    assert type(found) is type(server.values)
    if isinstance(found, np.ndarray):
        np.testing.assert_array_equal(found, server.values)
        assert found.dtype == server.values.dtype
    else:
        assert repr(found) == repr(server.values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_come_back_as_they_were(dtype: torch.dtype) -> None:
    server, snapshot = made()
    tensor = torch.tensor([[0, 1], [1, 0]]).to(dtype)
    server.values = [
        tensor,
        tensor,
        tensor.t().clone(),
        torch.empty(0, dtype=dtype),
        Pair(1, tensor),
    ]
    found = through(server, snapshot).values
    assert found[0] is found[1] is found[4].tensor
    assert isinstance(found[4], Pair)
    for own, other in zip(found[:4], server.values[:4], strict=True):
        assert torch.equal(own, other) and own.dtype == other.dtype


@pytest.mark.parametrize(
    ("make", "draw"),
    [
        (lambda: torch.Generator().manual_seed(5), lambda g: torch.rand(3, generator=g).tolist()),
        (lambda: np.random.default_rng(5), lambda g: g.random(3).tolist()),
        (lambda: np.random.RandomState(5), lambda g: g.rand(3).tolist()),
        (lambda: random.Random(5), lambda g: [g.random(), g.gauss(0, 1)]),
    ],
)
def test_generators_go_on(make: Callable[[], Any], draw: Callable[[Any], Any]) -> None:
    server, snapshot = made()
    server.values = make()
    first = draw(server.values)
    fresh = through(server, snapshot)
    assert draw(fresh.values) == draw(server.values) != first


def test_the_global_generators_go_on() -> None:
    def draws() -> list[float]:
        # An odd number of normal ones: each generator makes two at once, and keeps the second.
        own = [random.random(), random.gauss(0, 1), *np.random.rand(2), np.random.standard_normal()]
        return [*own, *torch.rand(3).tolist(), torch.randn(()).item()]

    _, snapshot = made()
    torch.manual_seed(7)
    draws()
    tensors, told = snapshot.take()
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    told = json.loads(json.dumps(told))
    drawn = draws()
    _, other = made()
    other.put(kept, told)
    assert draws() == drawn
    # Where nobody drew they are those of a new node.
    assert made()[1].take()[1]["drawn"] == {}


def test_objects_that_a_round_made_are_made_again() -> None:
    server, snapshot = made()
    later = Side()
    later.spent[0.25] += 4
    server.side.made_later = later
    server.values = [later, server.side]
    server.by_client["client-1"].append(1)
    fresh = through(server, snapshot)
    assert fresh.values[0] is fresh.side.made_later and fresh.values[1] is fresh.side
    assert fresh.side.made_later.spent == Counter({0.5: 1, 0.25: 4})
    assert fresh.by_client["client-2"] == [] and fresh.by_client["client-1"] == [1]


def test_circles_come_back() -> None:
    server, snapshot = made()
    server.values = [1]
    server.values.append(server.values)
    fresh = through(server, snapshot)
    assert fresh.values[1] is fresh.values


def test_tensors_without_values_keep_their_shapes_alone() -> None:
    with torch.device("meta"):
        model = VisionTransformer(SPEC, CLASSES)
    config = kdfft.Config(public_samples=12, public_batch=6)
    model = kdfft.adapt(config, model)
    shard = Shard(
        torch.empty(5, *SHAPE, device="meta"),
        torch.zeros(5, dtype=torch.int64),
        torch.empty(12, *SHAPE, device="meta"),
        1,
    )
    client = kdfft.Client(config, model, shard, 1)
    snapshot = Snapshot(client, config, shard)
    client.digesting.step()
    tensors, told = snapshot.take()
    assert set(tensors) == {".generator.state", "torch"}
    snapshot.put(tensors, told)


def last(values: Any) -> Callable[[Server], None]:
    def change(server: Server) -> None:
        server.values = values(server)

    return change


REFUSED: dict[str, tuple[Callable[[Server], None], str]] = {
    "a kind that is not known": (last(lambda s: iter([])), "Server.values: a builtins.list_iter"),
    "one within another": (
        last(lambda s: {"a": [b"x"]}),
        "values['a'][0]: a builtins.bytes",
    ),
    "a module made later": (last(lambda s: nn.Linear(2, 2)), "parameters or buffers are not those"),
    "a module of none made later": (last(lambda s: nn.ReLU()), "a ReLU that __init__ did not make"),
    "an optimizer made later": (
        last(lambda s: torch.optim.SGD(s.model.parameters(), lr=1.0)),
        "Server.values: a SGD that __init__ did not make",
    ),
    "a function made later": (last(lambda s: lambda: 1), "Server.values: a function that is not"),
    "another function": (
        lambda s: setattr(s, "loss", nn.functional.mse_loss),
        "Server.loss: a function that is not the one of __init__",
    ),
    "a view of a weight": (
        last(lambda s: s.model.linear.weight.detach()[0]),
        "Server.values: shares memory with .model.linear.weight",
    ),
    "other data": (lambda s: setattr(s, "some", s.shard.inputs[0:2]), "Server.some: a Tensor"),
    "what is more than its attributes": (
        last(lambda s: Table(a=1)),
        f"Server.values: a {__name__}.Table",
    ),
    "a lock": (last(lambda s: threading.Lock()), "Server.values: a _thread.lock"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_cannot_be_kept_is_named(case: str) -> None:
    change, words = REFUSED[case]
    server, snapshot = made()
    change(server)
    with pytest.raises(Unkept) as caught:
        snapshot.take()
    assert words in str(caught.value)


def test_what_cannot_be_kept_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Side, "__init__", lambda self: setattr(self, "spent", b"x"))
    with pytest.raises(Unkept, match=r"Server\.side\.spent: a builtins\.bytes"):
        made()


def test_another_methods_state_is_refused() -> None:
    _, snapshot = made()
    model = VisionTransformer(SPEC, CLASSES)
    other = fedavg.Server(fedavg.Config(), model, data(), 0)
    with pytest.raises(Unkept, match=r"not of this methods\.fedavg\.Server"):
        Snapshot(other, fedavg.Config(), data()).put(*snapshot.take())


HERE = __name__
FORGED: dict[str, dict[str, Any]] = {
    "a class of another package": {"object": ["subprocess:Popen", {}]},
    "a program, as fields": {"named": ["subprocess:Popen", [["true"]]]},
    "a program, as a member": {"enum": ["subprocess:Popen", "poll"]},
    "a module within one": {"object": [f"{HERE}:random.Random", {}]},
    "under another's name": {"named": [f"{HERE}:NamedTuple", [1, 2]]},
    "a function": {"named": [f"{HERE}:made", []]},
    "a module to import": {"object": ["antigravity:x", {}]},
    "an attribute to import": {"object": ["concurrent.futures:ProcessPoolExecutor", {}]},
    "too few fields": {"named": [f"{HERE}:Pair", [1]]},
    "no member": {"enum": [f"{HERE}:Kind", "__class__"]},
    "a class of numpy": {"array": ["a", "O", [1]]},
    "a function of numpy": {
        "generator": ["Generator", {"dict": ["dict", [["bit_generator", "seed"]]]}]
    },
    "a function of torch": {"shape": ["load", [1]]},
    "a state of nothing": {"state": {"dict": ["dict", []]}},
    "a module that is none": {"module": [True, {}]},
    "a constant that is none": {"constant": None},
    "no kind": {"class_of": f"{HERE}:Side"},
    "no kind either": {"attributes": [1, {}, ""]},
    "a method": {"object": [f"{HERE}:Guarded", {"watched": 1}]},
    "a dictionary as an object": {"object": [f"{HERE}:Table", {}]},
    "a module as an object": {"object": [f"{HERE}:Layer", {}]},
    "a frozen one": {"object": [f"{HERE}:Config", {"rate": 1}]},
    "a class of what a method is made of": {
        "object": ["methods.shared.averaging:WeightedMean", {}]
    },
    "another's members": {"enum": ["signal:Signals", "SIGKILL"]},
    "a class without a name": {"object": [None, {}]},
    "a tensor once more": [{"tensor": ["a", False]}, {"tensor": ["a", False]}],
    "an array once more": [{"array": ["a", "|u1", [8]]}, {"array": ["a", "|u1", [8]]}],
    "a weight once more": {"tensor": [".model.linear.weight", False]},
    "a type with fields": {"array": ["a", "i4,i4", [1]]},
    "a type with many of itself": {"array": ["a", "(2,)i4", [1]]},
    "far too much": {"generator": ["Random", [3, [2**70] * 625, None]]},
}


@pytest.mark.parametrize("case", list(FORGED))
def test_no_file_chooses_what_is_run(case: str) -> None:
    _, snapshot = made()
    tensors, told = snapshot.take()
    told["root"]["object"][1]["values"] = FORGED[case]
    tensors["a"] = torch.zeros(8, dtype=torch.uint8)
    _, other = made()
    with pytest.raises(Unkept, match="not of this"):
        other.put(tensors, told)
    assert not Guarded.ran


def told_of(state: Any) -> Any:
    """A state of numpy's as a file has it, its arrays as lists."""
    if isinstance(state, dict):
        return {"dict": ["dict", [[name, told_of(each)] for name, each in state.items()]]}
    return state.tolist() if isinstance(state, np.ndarray) else state


@pytest.mark.parametrize("place", [-1, 625, 2**31, 2**70, 3.0, None])
def test_no_generator_reads_beyond_its_numbers(place: Any) -> None:
    twister = np.random.MT19937(1).state
    twister["state"]["pos"] = place
    philox = np.random.Philox(1).state | {"buffer_pos": place}
    states = [("Generator", twister), ("RandomState", twister), ("Generator", philox)]
    for kind, state in states:
        _, snapshot = made()
        tensors, told = snapshot.take()
        told["root"]["object"][1]["values"] = {"generator": [kind, told_of(state)]}
        _, other = made()
        with pytest.raises(Unkept, match="of a generator's state"):
            other.put(tensors, told)
    _, snapshot = made()
    tensors, told = snapshot.take()
    told["drawn"] = {"numpy": ["MT19937", [1] * 624, place, 0, 0.0]}
    with pytest.raises(Unkept, match="of a generator's state"):
        made()[1].put(tensors, told)


def test_no_file_hides_what_a_schedule_does() -> None:
    _, snapshot = made()
    tensors, told = snapshot.take()
    told["root"]["object"][1]["schedule"]["state"]["dict"][1].append(["step", 1])
    fresh, other = made()
    with pytest.raises(Unkept, match=r"\.schedule\.step is its class's"):
        other.put(tensors, told)
    assert "step" not in vars(fresh.schedule)


WRONG: tuple[Any, ...] = (
    *(None, True, -1, 2**40, 2**70, 1e300, float("nan"), "", "torch", "\x00", "__class__"),
    *([], {}, [None], {"a": 1}, [[[1]]], {"same": ""}, {"same": ".values"}, {"constant": None}),
    *({"weight": ".model.linear.weight"}, {"shape": ["float32", [2**62, 2**62]]}),
    *({"tensor": ["torch", True]}, {"object": [f"{HERE}:Side", {}]}, {"deque": [-1, []]}),
)
"""In place of whatever stands in a state."""


def places(value: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of each value within; of long lists the first elements'."""
    inner = list(enumerate(value[:4])) if isinstance(value, list) else []
    inner = list(value.items()) if isinstance(value, dict) else inner
    found = [before] if before else []
    return found + [place for key, each in inner for place in places(each, (*before, key))]


@pytest.mark.thorough
def test_nothing_in_a_state_is_believed() -> None:
    server, snapshot = made()
    train(server)
    kept, whole = snapshot.take()
    whole = json.dumps(whole)
    refused = 0
    for place in places(json.loads(whole)):
        for wrong in WRONG:
            told = json.loads(whole)
            owner = told
            for step in place[:-1]:
                owner = owner[step]
            owner[place[-1]] = wrong
            try:
                made()[1].put(kept, told)
            except Unkept:
                refused += 1
    assert refused > 1000


def test_no_file_puts_hooks_into_modules() -> None:
    _, snapshot = made()
    tensors, told = snapshot.take()
    _, fields = told["root"]["object"][1]["model"]["module"]
    fields[""]["_forward_hooks"] = {"dict": ["OrderedDict", []]}
    _, other = made()
    with pytest.raises(Unkept, match="attributes that are no method's"):
        other.put(tensors, told)


def test_objects_are_made_without_their_code() -> None:
    server, snapshot = made()
    server.values = Guarded()
    Guarded.ran.clear()
    assert type(through(server, snapshot).values) is Guarded
    assert not Guarded.ran


def test_a_part_of_a_cut_model_is_kept_once() -> None:
    class Client:
        def __init__(self, model: nn.Module) -> None:
            self.model = model
            self.cut = cut(model, head_blocks=1, tail_blocks=0, private=False)

    Client.__module__ = "methods.made_up"
    client = Client(VisionTransformer(SPEC, CLASSES))
    tensors, _ = Snapshot(client, CONFIG, data()).take()
    assert len(tensors) == 1 + len(list(client.model.parameters()))
