"""A student that learns by LoRA adapters of its trunk, which are folded into it in the end."""

from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_zip.errors import HfZipError


def add_lora(student: PreTrainedModel, trunk: Collection[str], rank: int, seed: int) -> None:
    """Gives the linear layers of a trunk adapters, and leaves nothing else of it to be trained.

    The head is trained in full. An adapter begins as zero and its factor is 1.

    Args:
        student: The student; changed in place.
        trunk: Names of the trunk's parameters.
        rank: Rank of the adapters, at least 1.
        seed: Decides what adapters begin with.

    Raises:
        HfZipError: The trunk has no linear layers.

    Source: LoRA (https://arxiv.org/abs/2106.09685), section 4.1, here of all linear layers.
    """
    from peft import LoraConfig, inject_adapter_in_model  # seconds to import

    linear = [
        name
        for name, module in student.named_modules()
        if isinstance(module, nn.Linear) and f"{name}.weight" in trunk
    ]
    if not linear:
        raise HfZipError(
            f"lora_rank is {rank}, but what is rooted of {type(student).__name__} has no linear "
            "layers to adapt; set lora_rank: 0"
        )
    heads = [p for name, p in student.named_parameters() if name not in trunk]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=linear), student)
    for parameter in heads:
        parameter.requires_grad_(True)


@torch.no_grad()
def fold_lora(student: PreTrainedModel) -> None:
    """Adds what adapters have learnt to the weights of their layers, and takes them away.

    Args:
        student: What `add_lora` was called on; changed in place.
    """
    from peft.tuners.lora import LoraLayer

    adapted: dict[str, Any] = {
        name: module for name, module in student.named_modules() if isinstance(module, LoraLayer)
    }
    for name, layer in adapted.items():
        layer.merge()
        student.set_submodule(name, layer.get_base_layer())
    for parameter in student.parameters():
        parameter.requires_grad_(True)
