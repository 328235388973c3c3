"""A model of the same class with other entries of its config, which is to be filled."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_zip.entries import set_entries


def reconfigured(model: PreTrainedModel, changes: Mapping[str, Any]) -> PreTrainedModel:
    """Returns a model of a model's class, with the parts that it has; its parameters are to be set.

    Args:
        model: The model; left unchanged.
        changes: Entries of the config that differ from its own.
    """
    config = copy.deepcopy(model.config)
    set_entries(config, changes)
    with torch.random.fork_rng(devices=[]):  # the initialisation is overwritten: draw nothing
        made = type(model)(config)
    for name, _ in list(made.named_children()):
        if getattr(model, name) is None:  # left out when it was made, or left to a head
            setattr(made, name, None)
    return made.to(model.device, model.dtype).eval()
