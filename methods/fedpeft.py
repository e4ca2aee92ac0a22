"""FedPEFT: Parameter-Efficient Fine-Tuning in federated learning (arXiv 2210.01708), with LoRA.

FedAvg over the trainable tensors only: the backbone is frozen, low-rank adapters (Hu et al.,
arXiv 2106.09685; the implementation is peft's) and the classifier are trained and sent. One way a
client: 4 bytes a trainable parameter, that is 4 * (2 * rank * width * targets * blocks +
classifier).
"""

from typing import Annotated

import msgspec
from torch import nn

from methods import fedavg


class Config(fedavg.Config, frozen=True, forbid_unknown_fields=True, kw_only=True):
    rank: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 8
    """Rank of each adapter."""
    lora_alpha: Annotated[float, msgspec.Meta(gt=0)] = 8.0
    """The adapter's output is scaled by lora_alpha / rank."""
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 1e-2


def adapt(config: Config, model: nn.Module) -> nn.Module:
    """Freeze the model but for its classifier and put LoRA on every query and value projection."""
    # Here and not above: it takes seconds, which only the process that forks the nodes spends.
    from peft import LoraConfig, inject_adapter_in_model

    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.lora_alpha,
        target_modules=["query", "value"],
    )
    adapted = inject_adapter_in_model(lora, model)
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad_("lora_" in name or ".classifier." in name)
    return adapted


class Server(fedavg.Server):
    kind = "adapter"


class Client(fedavg.Client):
    kind = Server.kind
