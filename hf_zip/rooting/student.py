"""A copy of a model with other parameters that is ready to learn."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_zip.align import State
from hf_zip.learned import learned
from hf_zip.refit.reconfigured import reconfigured


@torch.no_grad()
def make_student(
    model: PreTrainedModel, state: State, config: Mapping[str, Any] | None = None
) -> PreTrainedModel:
    """Returns a copy of a model with other parameters, in which nothing is dropped out.

    Args:
        model: The model; left unchanged.
        state: Parameters and running statistics by name, on any device. Of a linear layer there may
            be other rows than the model has; what is absent is the model's own.
        config: Entries of the config that differ from the model's.
    """
    if config:
        student, state = reconfigured(model, config), {**learned(model), **state}
    else:
        student = copy.deepcopy(model)
    for name, tensor in state.items():
        _with_rows(student, name, tensor.shape)
    put(student, state)
    for module in student.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and ("drop" in name or isinstance(module, nn.Dropout)):
                setattr(module, name, 0.0)
    return student


@torch.no_grad()
def put(student: PreTrainedModel, state: State) -> None:
    """Gives a student other parameters and running statistics, in place.

    Args:
        student: The student.
        state: What to put there, by name, on any device.
    """
    own = learned(student)
    for name, tensor in state.items():
        own[name].copy_(tensor)


def _with_rows(model: nn.Module, name: str, shape: torch.Size) -> None:
    """Gives a parameter of a linear layer so many rows."""
    place, _, leaf = name.rpartition(".")
    layer = model.get_submodule(place)
    if isinstance(layer, nn.Linear) and (old := getattr(layer, leaf)).shape != shape:
        setattr(layer, leaf, nn.Parameter(old.new_empty(shape)))
        layer.out_features = len(getattr(layer, leaf))


def compute_activations_again(student: PreTrainedModel) -> None:
    """Has activations computed again in the backward pass, whatever transformers calls it."""
    name = "activation_checkpointing_enable"
    getattr(student, name, student.gradient_checkpointing_enable)()
