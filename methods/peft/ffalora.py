"""FFA-LoRA: LoRA whose A stays as it was first drawn, so that the mean of the rest is exact.

Sun et al., Improving LoRA in Privacy-preserving Federated Learning, ICLR 2024, arXiv 2403.12313.
Every node draws the same A from the run's seed, and none sends it: rank * width parameters for each
of query and value in every block, half of LoRA's. With one A for all the mean of the products B A
is the mean of the Bs times A, which it is not where both are averaged. Noise of differential
privacy (dp=sample) is not multiplied with itself either. From the paper: what is frozen, and why.
Ours: where adapters stand and the first values, which are ``lora``'s.
"""

from __future__ import annotations

from torch import nn

from methods import peft
from methods.peft import lora
from methods.shared.backbone import learnt_classifier

KIND = lora.KIND
LEARNING_RATE = lora.LEARNING_RATE
check = lora.check


def adapt(config: lora.Config, model: nn.Module) -> nn.Module:
    adapted = lora.adapt(config, model)
    trained = [each.lora_B for each in lora.adapters(adapted).values()]
    return peft.train_only(adapted, [*trained, *learnt_classifier(adapted)])
