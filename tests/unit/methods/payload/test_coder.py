"""Every method that can, with every stage, in process: bytes, and the model that it learns."""

import itertools
import math
from typing import Any

import pytest
import torch
from made_staged_runs import OPTIONS, SAMPLES, Run, staged
from torch import nn

import methods
from methods import VALUES, fedavg, payload
from methods.payload import PACK, load
from methods.payload.chain import Chain
from methods.payload.coder import Coder
from methods.peft import lora
from methods.shared.local_training import trainable_state
from nodes import requirements
from nodes.checkpoint import Snapshot
from nodes.program import FineTuning
from testbed.config_error import ConfigError
from testbed.run.config import RunConfig

Tensors = dict[str, torch.Tensor]
STAGES = ["powersgd:rank=1" if name == "powersgd" else name for name in payload.names()]
"""The model's matrices are too small for the rank that PowerSGD has if nothing is said."""

KINDS = ("powersgd:rank=1", "qsgd", "topk", "zstd")
"""One of each: of two factors that last, of draws, of a residual, and of bytes."""
LEAVE_OUT = {"powersgd", "randomk", "stc", "topk"}
NOT_OF = {"flora": LEAVE_OUT}
"""Stages that a method refuses whatever their options."""


def stages(way: str) -> list[tuple[str, str]]:
    """Every method with every stage; without feedback where that is refused.

    Of methods whose rounds and messages are the same code the first has every stage, and the
    others one of each kind.
    """
    found, seen = [], set()
    for name in OPTIONS:
        method = methods.load(name)
        code = method.Server.round, method.Client.round, method.staged_shapes
        some = KINDS if code in seen else STAGES
        seen.add(code)
        for stage in some if way in method.stageable else []:
            without = name in ("flora", "flexlora") and Chain([stage]).feedback
            text = f"{stage}{',' if ':' in stage else ':'}feedback=false" if without else stage
            if stage.partition(":")[0] not in NOT_OF.get(name, set()):
                found.append((name, text))
    return found


def test_each_method_that_takes_stages_is_held_against_them_here() -> None:
    able = {name for name in methods.names() if methods.load(name).stageable}
    assert OPTIONS.keys() == able


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "stage"), stages("up"))
def test_what_clients_send_goes_through_any_stage_under_any_method(name: str, stage: str) -> None:
    run = Run(name, [stage], [], clients=2)
    # What nothing is kept for is no other in a later round, but where rounds overlap.
    network = run.play(2 if Chain([stage]).feedback or name == "fedbuff" else 1)
    assert network.missed() == set()
    sizes = staged(network, "up")
    assert sizes and not staged(network, "down")
    whole, coded = (sum(each[place][1] for each in sizes) for place in (0, 1))
    assert whole > 0 and coded > 0
    if name in (*("fedavg", "splitfed"), *LORA) and stage not in ("deflate", "zstd"):
        assert coded < whole
    assert all(bool(torch.isfinite(each).all()) for each in run.state().values())


LORA = ("flora", "hetlora", "flexlora")


@pytest.mark.parametrize("name", LORA)
def test_of_a_rank_for_each_client_what_hardly_loses_leaves_nearly_the_same_model(
    name: str,
) -> None:
    sgd = {"optimizer": "sgd", "learning_rate": 0.05}
    alone, coded = Run(name, [], [], **sgd), Run(name, ["int8"], [], **sgd)
    start = _effective(coded.server.model)
    alone.play(3)
    coded.play(3)
    for path, each in _effective(alone.server.model).items():
        moved = (each - start[path]).abs().max()
        difference = (_effective(coded.server.model)[path] - each).abs().max()
        assert difference <= 0.1 * moved + 1e-6, path


def _effective(model: nn.Module) -> Tensors:
    """What each adapted layer multiplies with, which turns with no basis."""
    return {
        path: (each.layer.weight + each.scale * each.lora_B @ each.lora_A).detach().clone()
        for path, each in lora.adapters(model).items()
    }


@pytest.mark.parametrize("name", LORA)
def test_without_loss_adapters_of_any_rank_are_the_same_to_the_bit(name: str) -> None:
    alone, packed = Run(name, [], []), Run(name, ["deflate"], [])
    alone.play(2)
    packed.play(2)
    for key, each in alone.state().items():
        assert torch.equal(packed.state()[key], each)


@pytest.mark.parametrize("stage", ["topk:k=0.3,feedback=true", "powersgd:rank=1", "sign"])
def test_feedback_goes_on_with_a_rank_that_was_pruned(stage: str) -> None:
    run = Run("hetlora", [stage], [], self_prune=True, prune_gamma=0.7, ranks="5,3,1")
    falling = itertools.count(0, -1)
    client = run.clients["client-1"]
    client.tail = lambda fewer, rank: torch.tensor(float(next(falling)))
    network = run.play(3)
    assert network.missed() == set()
    ranks = [m.details["rank"] for m in network.of("up", "rank") if m.sender == "client-1"]
    assert ranks == [3, 2, 1]
    for name, kept in client.stages.memory["adapter"].items():
        if name.endswith("lora_A") and "residual" in kept:
            assert len(kept["residual"]) == 1


@pytest.mark.parametrize(
    ("name", "stage", "words"),
    [
        *((name, "topk:feedback=true", "give the stage feedback=false") for name in LORA[::2]),
        *((name, "sign", "give the stage feedback=false") for name in LORA[::2]),
        *(("flora", f"{s}:feedback=false", "leaves values out") for s in sorted(LEAVE_OUT)),
        ("flora", "topk", "take one that takes fewer bits for each value, such as int8"),
    ],
)
def test_what_makes_no_sense_of_adapters_is_refused(name: str, stage: str, words: str) -> None:
    config, method = RunConfig(method=name, stage=[stage]), methods.load(name)
    with pytest.raises(ConfigError, match=f"method {name}: a stage .*{words}"):
        requirements.coder(config, method, method.Config())


@pytest.mark.parametrize("name", LORA)
def test_down_their_messages_say_nothing_of_a_base(name: str) -> None:
    config, method = RunConfig(method=name, stage_down=["int8"]), methods.load(name)
    with pytest.raises(ConfigError, match=f"method {name} says of nothing that it sends down"):
        requirements.coder(config, method, method.Config())


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "stage"), stages("down"))
def test_what_the_server_sends_likewise(name: str, stage: str) -> None:
    run = Run(name, [], [stage], clients=2)
    # The first round's model is whole, and the second's a difference.
    network = run.play(2)
    assert network.missed() == set()
    assert staged(network, "down") and not staged(network, "up")
    assert all(bool(torch.isfinite(each).all()) for each in run.state().values())


@pytest.mark.parametrize("way", ["up", "down"])
def test_without_loss_the_model_is_the_same_to_the_bit(way: str) -> None:
    alone, packed = Run("fedavg", [], []), Run("fedavg", *_either(way, ["deflate"]))
    alone.play(2)
    packed.play(2)
    for name, each in alone.state().items():
        assert torch.equal(packed.state()[name], each)


def _either(way: str, chain: list[str]) -> tuple[list[str], list[str]]:
    return (chain, []) if way == "up" else ([], chain)


@pytest.mark.thorough
@pytest.mark.parametrize("way", ["up", "down"])
def test_what_hardly_loses_leaves_nearly_the_same_model(way: str) -> None:
    # Adam makes steps of equal size of gradients that are nearly zero.
    sgd = {"optimizer": "sgd", "learning_rate": 0.05}
    alone = Run("fedavg", [], [], **sgd)
    coded = Run("fedavg", *_either(way, ["int8"]), **sgd)
    alone.play(3)
    coded.play(3)
    start = trainable_state(Run("fedavg", [], []).server.model)
    for name, each in alone.state().items():
        moved = (each - start[name]).abs().max()
        assert (coded.state()[name] - each).abs().max() <= 0.1 * moved + 1e-6


def test_who_missed_a_round_is_sent_the_whole_and_everybody_starts_alike() -> None:
    """Of three clients two are drawn a round; all start from what the server holds they have."""
    run = Run("fedavg", [], ["topk:k=0.1"])
    starts: dict[int, list[dict[str, torch.Tensor]]] = {}
    for client in run.clients.values():
        trained = client.update

        def update(start: Any, trained: Any = trained, client: Any = client) -> Any:
            starts.setdefault(run_round[0], []).append({n: t.clone() for n, t in start.items()})
            return trained(start)

        client.update = update
    run_round = [0]
    kinds = set()
    for number in range(1, 8):
        run_round[0] = number
        network = run.play(number, first=number, per_round=2)
        kinds |= {any(n.startswith("~") for n in m.tensors) for m in network.of("down")}
    assert kinds == {True, False}
    for found in starts.values():
        assert len(found) == 2
        for name, each in found[0].items():
            assert torch.equal(found[1][name], each)


def test_weights_are_coded_for_all_alike_and_in_every_round() -> None:
    """Nobody needs what it was sent before."""
    run = Run("fedavg", [], ["cossgd:bits=4,weights=true"])
    network = run.play(4, per_round=2)
    assert network.missed() == set()
    shapes = [each.shape for each in run.state().values()]
    size = sum(math.ceil(shape.numel() / 2) + 8 for shape in shapes)
    assert [message.payload_bytes for message in network.of("down")] == 8 * [size]
    for number in range(1, 5):
        one, other = (m.tensors for m in network.of("down") if m.round == number)
        assert all(torch.equal(one[name], other[name]) for name in one)
    first = next(iter(network.of("down"))).tensors
    expected = Chain(["cossgd:bits=4"]).decode(first, run.state(), {}, 0)
    assert max(len(each.unique()) for each in expected.values()) == 16


@pytest.mark.thorough
@pytest.mark.parametrize("stage", ["cossgd:bits=2,weights=true", "topk:k=0.05", "sign"])
@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_what_a_stage_leaves_out_down_the_server_keeps(name: str, stage: str) -> None:
    """It moves by the mean of updates, from where it was and not from what it could say of that."""
    run = Run(name, [], [stage], optimizer="sgd", learning_rate=0.01)
    changes: dict[str, dict[str, torch.Tensor]] = {}
    for client, node in run.clients.items():

        def update(start: Any, trained: Any = node.update, client: str = client) -> Any:
            end, details = trained(start)
            changes[client] = {name: end[name].double() - start[name].double() for name in end}
            return end, details

        node.update = update
    for number in (1, 2, 3):
        before = run.state()
        run.play(number, first=number)
        for each, now in run.state().items():
            moved = sum(SAMPLES[client] * own[each] for client, own in changes.items())
            expected = before[each].double() + moved / sum(SAMPLES.values())
            assert torch.allclose(now.double(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("field", "text", "reason"),
    [
        ("stage", "cossgd:weights=true", "weights=true is for stage_down; what clients send goes"),
        ("stage_down", "cossgd:weights=true,feedback=true", "weights = true goes with feedback"),
    ],
)
def test_weights_are_coded_where_a_receiver_has_no_base(field: str, text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        FineTuning(RunConfig(method="fedavg", **{field: (text,)}), 2)  # type: ignore[arg-type]
    FineTuning(RunConfig(method="fedavg", stage_down=("cossgd:weights=true",)), 2)


@pytest.mark.thorough
def test_a_run_that_goes_on_has_its_residuals() -> None:
    """Taken out and put into new objects amid a run, whose model is then the same."""
    chains = ["topk:k=0.05,feedback=true,decay=0.5", "int8"], ["int8"]
    whole, before, after = (Run("fedavg", *chains) for _ in range(3))
    whole.play(6, per_round=2)
    before.play(3, per_round=2)
    for name, (node, shard) in before.nodes.items():
        new, own = after.nodes[name]
        tensors, told = Snapshot(node, before.options, shard).take()
        del node
        kept = {key: each.clone() for key, each in tensors.items()}
        Snapshot(new, after.options, own).put(kept, told)
    assert any(client.stages.memory for client in before.clients.values())
    after.play(6, first=4, per_round=2)
    spoke = [run.clients[name].stages.spoke for name in SAMPLES for run in (whole, after)]
    assert spoke[::2] == spoke[1::2]
    for name, each in whole.state().items():
        assert torch.allclose(after.state()[name], each, atol=1e-6)


WITH_FEEDBACK = [
    f"{text}{',' if ':' in text else ':'}feedback=true"
    for text in STAGES
    if load(text).order != PACK
]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("text", "decay"),
    [(text, 0.5) for text in WITH_FEEDBACK] + [("topk:feedback=true", 0.0)],
)
def test_what_was_not_said_decays_while_a_client_is_not_drawn(text: str, decay: float) -> None:
    """Of three clients one is drawn a round; what is sent and what is left are all there was."""
    run = Run("fedavg", [f"{text},decay={decay:g}"], [])
    said: dict[int, tuple[str, Tensors, Tensors]] = {}
    taken, number = run.server.take, [0]

    def take(update: Any, fleet: Any) -> bool:
        said[number[0]] = update.sender, ends[-1], update.tensors
        return bool(taken(update, fleet))

    ends: list[Tensors] = []
    for client in run.clients.values():

        def update(start: Tensors, trained: Any = client.update) -> Any:
            end = trained(start)
            ends.append({name: each.clone() for name, each in end[0].items()})
            return end

        client.update = update
    run.server.take = take
    spoke: dict[str, int] = {}
    left: dict[str, Tensors] = {}
    gaps = set()
    for number[0] in range(1, 9):
        run.play(number[0], first=number[0], per_round=1)
        sender, end, arrived = said[number[0]]
        now = {
            name: kept["residual"]
            for name, kept in run.clients[sender].stages.memory["model"].items()
            if "residual" in kept
        }
        missed = number[0] - spoke[sender] - 1 if sender in spoke else None
        for name, each in now.items():
            before = decay**missed * left[sender][name] if missed is not None else 0.0
            assert torch.allclose(each + arrived[name], end[name] + before, atol=1e-5), name
        gaps.add(missed)
        spoke[sender], left[sender] = number[0], now
    assert any(gaps), "somebody missed a round and was drawn again"


def test_decay_counts_rounds_without_a_message_and_no_other() -> None:
    coder = Coder(Chain(["topk:k=0.5,feedback=true,decay=0.5"]), Chain([]), 1)
    tensors, base = {"w": torch.tensor([2.0, 0.0])}, {"w": torch.zeros(2)}

    def left(number: int) -> float:
        coded = coder.encode("model", number, tensors, base, "client-1")
        coder.remember("model", number, coded)
        return float(coder.lasting.memory["model"]["w"]["residual"][1])

    coder.lasting.memory["model"] = {"w": {"residual": torch.tensor([0.0, 1.0])}}
    coder.lasting.spoke["model"] = 1
    assert [left(number) for number in (2, 2, 3, 5, 8)] == [1.0, 1.0, 1.0, 0.5, 0.125]


def test_what_a_stage_goes_on_from_does_not_decay() -> None:
    """PowerSGD's last Q is a direction, and no part of an update."""
    chain = Chain(["powersgd:rank=1,decay=0"])
    _, memory = chain.encode({"w": torch.eye(8)}, {}, 1, {})
    aged = chain.aged(memory, 3)
    assert memory["w"]["residual"].any() and not aged["w"]["residual"].any()
    assert torch.equal(aged["0/w"]["q"], memory["0/w"]["q"])


def test_of_two_stages_with_feedback_the_least_decay_counts() -> None:
    chain = Chain(["topk:feedback=true", "sign:decay=0.25"])
    memory = {"w": {"residual": torch.ones(1)}}
    assert chain.aged(memory, 1)["w"]["residual"].tolist() == [0.25]
    assert chain.aged(memory, 0) is memory


def test_what_is_not_sent_is_not_forgotten() -> None:
    coder = Coder(Chain(["topk:k=0.5,feedback=true"]), Chain([]), 1)
    tensors = {"w": torch.tensor([2.0, 1.0])}
    base = {"w": torch.zeros(2)}
    coder.encode("model", 1, tensors, base, "client-1")
    assert coder.lasting.memory == {}
    coder.remember("model", 1, coder.encode("model", 1, tensors, base, "client-1"))
    assert coder.lasting.memory["model"]["w"]["residual"].tolist() == [0.0, 1.0]


def test_values_by_themselves_have_no_residual() -> None:
    coder = Coder(Chain(["topk:k=0.5,feedback=true"]), Chain([]), 1)
    coded = coder.encode("logits", 1, {"logits": torch.tensor([2.0, 1.0])}, VALUES, "client-1")
    assert coded.memory == {}


def test_garbage_is_refused_and_its_sender_missed() -> None:
    """A client that sends what no stage made has no part in the mean."""
    run = Run("fedavg", ["topk:k=0.1"], [])
    run.coders["client-2"].up = Chain(["int8"])
    network = run.play(1)
    ((peer, reason),) = network.missed()
    assert peer == "client-2" and "its update was not taken: ~0." in reason


@pytest.mark.parametrize("name", ["fedavg", "kdfft"])
def test_messages_are_as_many_bytes_as_the_record_says(name: str) -> None:
    run = Run(name, ["topk:k=0.1", "int8"], ["int8"])
    network = run.play(2)
    coded = [m for m in network.of("up") if any(n.startswith("~") for n in m.tensors)]
    assert sorted(m.payload_bytes for m in coded) == sorted(s[-1][1] for s in staged(network, "up"))
    assert fedavg.stageable == ("up", "down")
