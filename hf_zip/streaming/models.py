"""A checkpoint's model whose parameters are views of its files, by transformers' own renaming."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from hf_zip.mapped import mapped_tensors


class NotStreamableError(Exception):
    """Why a merge cannot be streamed; it is then done in memory, where errors are told."""


def empty_model(cls: Any, config: Any) -> PreTrainedModel:
    """Returns a model of a class without any numbers, on the meta device."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model: PreTrainedModel = cls(config)
    return model.eval()


def mapped_model(cls: Any, folder: Path, files: Sequence[Path]) -> PreTrainedModel:
    """Returns a checkpoint's model with views of its files as parameters and as saved buffers.

    The names in the files become those in the model by the renamings that `from_pretrained` makes.
    A tied parameter is one view. The precision is that of the files.

    Args:
        cls: The model's class.
        folder: The checkpoint's folder.
        files: Its weight files.

    Raises:
        NotStreamableError: A file is no safetensors file or holds types that cannot be viewed, a
            tensor is split or joined on loading, or something is missing, left over or of another
            shape.
    """
    try:
        config = cls.config_class.from_pretrained(folder)
        model = empty_model(cls, config)
    except Exception as error:  # whatever a foreign config makes transformers raise
        raise NotStreamableError(f"its config gives no {cls.__name__}") from error
    if getattr(config, "quantization_config", None) is not None:
        raise NotStreamableError("its weights are quantised")
    _assign(model, _renamed(model, _read(files)))
    return model


def names_in_file(model: PreTrainedModel) -> dict[str, tuple[str, Tensor]]:
    """Returns for each parameter and saved buffer of a model its name in a file, and its like.

    They come in the order in which `save_pretrained` writes them. A tied parameter is there once,
    under the name that it has among the model's parameters.

    Args:
        model: A model on the meta device that no checkpoint was loaded into.

    Raises:
        NotStreamableError: A tensor is split or joined on saving.
    """
    ignored = model._keys_to_ignore_on_save or ()
    state = {name: x for name, x in model.state_dict().items() if name not in ignored}
    # A view each: what a renaming passes on can then be told from what is put together anew.
    untied = remove_tied_weights_from_state_dict(state, model)
    kept = {name: tensor.view_as(tensor) for name, tensor in untied.items()}
    owners = {id(tensor): name for name, tensor in kept.items()}
    written = revert_weight_conversion(model, dict(kept))
    if len(written) != len(kept) or any(id(tensor) not in owners for tensor in written.values()):
        raise NotStreamableError(f"{type(model).__name__} splits or joins tensors when it is saved")
    listed: dict[int, str] = {}
    for name, own in (*model.named_parameters(), *model.named_buffers()):
        listed.setdefault(id(own), name)
    return {
        listed[id(model.get_parameter_or_buffer(owners[id(tensor)]))]: (name, tensor)
        for name, tensor in written.items()
    }


def _read(files: Sequence[Path]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in files:
        if file.suffix != ".safetensors":
            raise NotStreamableError(f"{file.name} is no safetensors file")
        tensors = mapped_tensors(file)
        if tensors is None:
            raise NotStreamableError(f"{file.name} holds tensors of types that are not streamed")
        found |= tensors
    return found


def _renamed(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of files by their names in the model, which are all of its names."""
    expected = model.state_dict()
    conversions = get_model_conversion_mapping(model)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    prefix = model.base_model_prefix
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name, converted = rename_source_key(key, renamings, converters, prefix, expected)
        if name not in expected and key in expected:
            name, converted = key, None
        if converted is not None:
            raise NotStreamableError(f"{key} is split or joined with others on loading")
        if name not in expected:
            if _is_ignored(name, model):
                continue
            raise NotStreamableError(f"{key} is left over")
        wanted = expected[name]
        if name in found or tuple(wanted.shape) != tuple(tensor.shape):
            raise NotStreamableError(f"{key} is there twice or has another shape")
        if wanted.is_floating_point() != tensor.is_floating_point():
            raise NotStreamableError(f"{key} is {tensor.dtype}, but {wanted.dtype} in the model")
        if not wanted.is_floating_point() and wanted.dtype != tensor.dtype:
            raise NotStreamableError(f"{key} is {tensor.dtype}, but {wanted.dtype} in the model")
        found[name] = tensor
    tied = model.all_tied_weights_keys
    if any(name in found for name in tied):
        raise NotStreamableError("it holds tied weights twice")
    missing = [name for name in expected if name not in found and name not in tied]
    if missing:
        raise NotStreamableError(f"{missing[0]} is missing")
    return {**found, **{target: found[source] for target, source in tied.items()}}


def _is_ignored(name: str, model: PreTrainedModel) -> bool:
    """Whether transformers passes over what older versions wrote."""
    patterns = [*(model._keys_to_ignore_on_load_unexpected or ()), r"(^|\.)position_ids$"]
    return any(re.search(pattern, name) for pattern in patterns)


def _assign(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    views: dict[int, nn.Parameter] = {}
    for name, tensor in tensors.items():
        place, _, leaf = name.rpartition(".")
        module = model.get_submodule(place)
        if leaf in module._parameters:
            view = nn.Parameter(tensor, requires_grad=False)
            module._parameters[leaf] = views.setdefault(id(tensor), view)
        else:
            module._buffers[leaf] = tensor
