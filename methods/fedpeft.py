"""FedPEFT: Parameter-Efficient Fine-Tuning in federated learning (Sun et al., arXiv 2210.01708).

FedAvg over the trainable tensors only: what pretraining gave is frozen and never sent; a variant
of ``methods/peft/`` says what is added or left free, and that is trained and averaged, weighted
by samples. One way a client: 4 bytes a trainable parameter. By variant, the classifier
(width * classes + classes) included, at ViT-B/16 with 100 classes:

    full      every parameter                                       85,875,556
    head      the classifier                                            76,900
    bias      every bias                                               179,812
    adapter   one bottleneck, shared by all blocks                     225,220
    prompt    10 prompts of their own in each block                    169,060
    lora      rank 8 on query and value (not in the paper)             371,812
    ffalora   the same, of which A is frozen (not in the paper)        224,356
    ia3       a factor a feature (not in the paper)                    132,196

The paper's setting, but for its data and pretrained model: optimizer=sgd, batch_size=64,
local_epochs=10, 64 clients, 8 a round, 50 rounds, a Dirichlet partition of alpha 0.1. A variant's
own learning rate for sgd is then the paper's.
"""

from typing import Annotated, Literal

import msgspec
from torch import nn

from methods import Shard, fedavg, peft, privacy
from methods.shared.averaging import BY_OTHERS
from methods.shared.beside import only_with

OF_LORA = only_with("variant", "lora", "ffalora")


class Config(fedavg.Config, frozen=True, forbid_unknown_fields=True, kw_only=True):
    variant: Literal["full", "head", "bias", "adapter", "prompt", "lora", "ffalora", "ia3"] = "lora"
    """What is trained and sent: a file of methods/peft/."""
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = BY_OTHERS
    """A client's; absent: the variant's own for the optimizer."""
    rank: Annotated[int, msgspec.Meta(ge=1, le=1024), OF_LORA] = 8
    """lora, ffalora: rank of each adapter."""
    lora_alpha: Annotated[float, msgspec.Meta(gt=0), OF_LORA] = 8.0
    """lora, ffalora: an adapter's output is scaled by lora_alpha / rank."""
    adapter_width: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=65536)] | None, only_with("variant", "adapter")
    ] = None
    """adapter: hidden features of the bottleneck; absent: an eighth of the model's width."""
    prompt_length: Annotated[int, msgspec.Meta(ge=1, le=10_000), only_with("variant", "prompt")] = (
        10
    )
    """prompt: prompts in each block."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learning_rate is None:
            own = peft.load(self.variant).LEARNING_RATE[self.optimizer]
            msgspec.structs.force_setattr(self, "learning_rate", own)


def check(config: Config, model: nn.Module) -> None:
    """Raises ValueError where the model lacks what the variant or the privacy needs."""
    peft.load(config.variant).check(config, model)
    privacy.check(config, model)


def adapt(config: Config, model: nn.Module) -> nn.Module:
    """The model with what the variant adds; all that is not sent is frozen."""
    return privacy.prepare(config, peft.load(config.variant).adapt(config, model))


class Server(fedavg.Server):
    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        super().__init__(config, model, shard, seed)
        self.kind = peft.load(config.variant).KIND


class Client(fedavg.Client):
    def __init__(self, config: Config, model: nn.Module, shard: Shard, seed: int) -> None:
        super().__init__(config, model, shard, seed)
        self.kind = peft.load(config.variant).KIND


stageable = fedavg.stageable
check_samples = fedavg.check_samples
all_reduce = fedavg.all_reduce
traffic = fedavg.traffic
client_flops = fedavg.client_flops
fixed_flops = fedavg.fixed_flops
