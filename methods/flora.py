"""FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations.

Wang et al., NeurIPS 2024, arXiv 2409.05976. Clients train LoRA of different ranks r_k; the server
stacks what they send, and everybody adds the product of the stack to its base weights. Round t, for
each adapted layer, with p_k = n_k / sum n and s_k the scale of an adapter's output:

    A = [p_1 s_1 A_1; ...; p_N s_N A_N],  B = [B_1, ..., B_N],  W <- W + B A,

which is sum_k p_k s_k B_k A_k exactly. Then A is drawn anew, by each client for itself, and B is
zero again. A client sends 4 r_k (inputs + outputs) bytes a layer, and from the second round on
receives 4 (sum r_k) (inputs + outputs) of it, "stack"; both ways it is
4 (width * classes + classes) more of classifier, which comes as "head".

What comes down grows with the clients: once (sum r_k) (inputs + outputs) > inputs * outputs, the
weights themselves would be less. The default sends the stack all the same, as the paper does;
downlink=least sends the weights then.

From the authors' code (ATP-1010/FederatedLLM): the stack, p_k in A, a scale of 2, adapters that are
drawn anew, ranks 64,32,16,16,8,8,4,4,4,4 (ours are less, for the shipped model). Ours: s_k in A, so
that scales may differ; and since a stack is worth something only to who has all that came before
it, a client that the server has not heard since then gets the adapted layers' weights, "weights".

Payload stages work on what goes up: on the classifier less what the client was sent, and on A and B
as they are, since the A that it drew is its own. So none may leave values out: of A they would be
drawn ones, as many and as large as any. Down, a stack must be the same at both ends to the last
bit.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from methods import Fleet, Peer, Shard, flexlora
from methods.payload.chain import Chain
from methods.peft import lora
from methods.shared import low_rank
from methods.shared.local_training import learnt, load_trainable, trainable_state
from methods.shared.low_rank import Update, first, of_others
from methods.shared.objective import scores


class Config(low_rank.Options, frozen=True, forbid_unknown_fields=True, kw_only=True):
    downlink: Literal["stack", "least"] = "stack"
    """What clients are sent of the last round: its stack, or whichever of it and the adapted
    layers' weights has fewer bytes."""


class Server:
    kind = lora.KIND

    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        self.config = config
        self.model = model
        self.version = 0
        """How many stacks the base has."""
        self.stack: dict[str, Tensor] = {}
        """The last of them."""
        self.versions: dict[str, int] = {}
        """How many each client's base has, where it has answered since."""

    async def round(self, fleet: Fleet) -> None:
        state = trainable_state(self.model)
        forms = {client: self.form(client) for client in fleet.clients}
        parts = {"none": {}, "stack": self.stack, "weights": {}}
        if "weights" in forms.values():
            parts["weights"] = {name: each.clone() for name, each in base(self.model).items()}

        async def ask(client: str) -> Update:
            # 1. Classifier and base, as much of it as the client lacks.
            form = forms[client]
            await fleet.send(
                client,
                "head",
                of_others(state),
                form=form,
                version=self.version,
                rank=low_rank.rank_of(self.stack),
            )
            if form != "none":
                await fleet.send(client, form, parts[form])
            # 2. New adapters, trained on it.
            like = first(state, self.config.rank_of(client))
            received = await fleet.receive(client, self.kind, like=like, base=of_others(state))
            return received.tensors

        updates = await low_rank.answers(fleet, ask)
        self.versions |= dict.fromkeys(updates, self.version)
        # 3. They are stacked and merged; where none came, the model stays.
        if updates:
            self.stack = self.stacked(updates, low_rank.shares(updates, fleet.samples))
            self.version += 1
            merge(self.model, self.stack)
            load_trainable(self.model, low_rank.mean_of_others(updates, fleet.samples))

    def form(self, client: str) -> str:
        """The kind of message that brings a client's base up to date."""
        lacks = self.version - self.versions.get(client, 0)
        if lacks == 0:
            return "none"
        least = self.config.downlink == "least"
        dense = low_rank.payload(base(self.model))
        if lacks > 1 or (least and dense < low_rank.payload(self.stack)):
            return "weights"
        return "stack"

    def stacked(self, updates: dict[str, Update], shares: dict[str, float]) -> dict[str, Tensor]:
        found = {}
        for path in lora.adapters(self.model):
            rows, columns = [], []
            for client, update in updates.items():
                a, b = low_rank.factors(update, path)
                scale = self.config.scale(self.config.rank_of(client))
                rows.append(shares[client] * scale * a)
                columns.append(b)
            found[f"{path}.lora_A"] = torch.cat(rows).float()
            found[f"{path}.lora_B"] = torch.cat(columns, dim=1).float()
        return found

    def evaluate(self, inputs: Tensor, targets: Tensor) -> dict[str, float]:
        return scores(self.model, inputs, targets)


class Client(flexlora.Client):
    def __init__(self, config: low_rank.Options, model: nn.Module, shard: Shard, seed: int) -> None:
        super().__init__(config, model, shard, seed)
        self.version = 0
        """How many stacks its base has."""

    def round(self, peer: Peer) -> None:
        self.number = peer.round
        # 1. The classifier, and what its base lacks.
        head = peer.receive("head", like=of_others(learnt(self.model)))
        load_trainable(self.model, head.tensors)
        version, rank = (int(head.details[name]) for name in ("version", "rank"))
        if head.details["form"] == "weights":
            load_trainable(self.model, peer.receive("weights", like=base(self.model)).tensors)
        elif head.details["form"] == "stack":
            stack = peer.receive("stack", like=like_stack(self.model, rank)).tensors
            # Cut off in its last round it can have it already, which the server cannot know.
            if self.version < version:
                merge(self.model, stack)
        self.version = version
        # 2. New adapters, trained on it.
        for each in lora.adapters(self.model).values():
            each.reset(self.generator)
        self.train()
        # 3. They alone go back, with the classifier.
        peer.send(self.kind, trainable_state(self.model), base=head.tensors)


def base(model: nn.Module) -> dict[str, Tensor]:
    """The weights that adapters are merged into."""
    return {
        f"{path}.layer.weight": each.layer.weight.detach()
        for path, each in lora.adapters(model).items()
    }


def merge(model: nn.Module, stack: Update) -> None:
    """Add the product of a stack to the base; the same at both ends, to the last bit."""
    for path, each in lora.adapters(model).items():
        a, b = low_rank.factors(stack, path)
        weight = each.layer.weight
        with torch.no_grad():
            weight.add_((b @ a).to(weight.dtype))


def like_stack(model: nn.Module, rank: int) -> dict[str, Tensor]:
    """Tensors without values in the shapes of a stack of this rank."""
    found = {}
    for path, each in lora.adapters(model).items():
        inputs, outputs = each.layer.in_features, each.layer.out_features
        found[f"{path}.lora_A"] = torch.empty(rank, inputs, device="meta")
        found[f"{path}.lora_B"] = torch.empty(outputs, rank, device="meta")
    return found


def traffic(config: Config, model: nn.Module) -> tuple[int, int]:
    """Up a client's of the lowest rank; down the classifier, all there is in the first round."""
    up, _ = low_rank.traffic(config, model)
    return up, low_rank.payload(of_others(learnt(model)))


stageable = ("up",)


def check_stages(up: Chain, down: Chain) -> None:
    low_rank.refuse_feedback(up, "each round draws adapters anew")
    if up.leaves_out:
        raise ValueError(
            "a stage that leaves values out: A is drawn anew each round and sent whole, and a part "
            "of its values stands for none of the others; take one that takes fewer bits for each "
            "value, such as int8"
        )


check = low_rank.check
adapt = low_rank.adapt
client_flops = low_rank.client_flops
fixed_flops = low_rank.fixed_flops
