"""Exact rewrites of a pre-norm model to one form, in which models can be compared and fitted."""

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_zip.adapters import Adapter
from hf_zip.entries import set_entries
from hf_zip.errors import HfZipError
from hf_zip.groups import Axis, blocks, head_names, merge_groups, outer_readers
from hf_zip.names import Names

_LOSS = (
    "so gains and biases are part of the stream, which can be neither rotated nor refitted without "
    "loss"
)


def obstacle(adapter: Adapter, rotated: bool = False) -> str:
    """Returns why the models of a family have no canonical form; nothing if they have one.

    Args:
        adapter: The family's table.
        rotated: Whether the stream should be one that can be rotated without loss.
    """
    found = ""
    if adapter.towers:
        return (
            f"models of {adapter.name!r} have {len(adapter.towers)} towers "
            f"({', '.join(adapter.towers)}), and only the layers of one can be rotated or refitted"
        )
    if not adapter.heads:
        return f"models of {adapter.name!r} have no task head that reads their last normalisation"
    if not adapter.pre_norm:
        found = f"the blocks of {adapter.name!r} do not normalise what they read (post-norm)"
    elif rotated and adapter.embedding_norms:
        found = f"{adapter.embedding_norms[0]} of {adapter.name!r} normalises the embeddings"
    return f"{found}, {_LOSS}" if found else ""


def check_canonical(adapter: Adapter, rotated: bool = False) -> None:
    """Checks that the models of a family have a canonical form.

    Args:
        adapter: The family's table.
        rotated: See `obstacle`.

    Raises:
        HfZipError: They have none.
    """
    found = obstacle(adapter, rotated)
    if found:
        raise HfZipError(f"{found}; use 'permute' or 'zipit'")


def canonical(model: PreTrainedModel, adapter: Adapter, to_the_end: bool = True) -> PreTrainedModel:
    """Returns a copy that computes the same with plain normalisations and a centred stream.

    Gain and bias of every LayerNorm are folded into the linear layers that read it, so that it only
    normalises; scales into those whose output they scale, so that they are 1; and the mean over
    features is taken out of everything that writes to the stream, which LayerNorm ignores. Readers
    without a bias get one. An attention pool beside the head is left out. The arithmetic is
    float64. Two things stay: the normalisation of the embeddings where there is one, as it writes
    its gain and bias to the stream, and the mean over features where the head reads it.

    Args:
        model: A pre-norm model, with a task head where the form goes to the end; left unchanged.
        adapter: Its family's table.
        to_the_end: Fold the normalisations after the blocks as well; else they stay as they are.

    Raises:
        HfZipError: The family has no canonical form, the model has no task head, or its stream is
            read by something else than linear layers.

    Source: SliceGPT (https://arxiv.org/abs/2401.15024), section 3.2.
    """
    check_canonical(adapter)
    changed = _without_pool(model, adapter) if to_the_end else copy.deepcopy(model)
    if to_the_end and not head_names(changed, adapter):
        raise HfZipError(
            f"{type(model).__name__} has no task head; its last normalisation cannot be folded "
            "into one"
        )
    with torch.no_grad():
        for block in blocks(changed, adapter):
            unbiased = () if adapter.key_bias else (block.key,)
            _fold(changed, block.attention_norm, (block.query, block.key, block.value), unbiased)
            _fold(changed, block.mlp_norm, (block.mlp_in,))
            _fold_scale(changed, block.attention_scale, block.output)
            _fold_scale(changed, block.mlp_scale, block.mlp_out)
        for norm in _last_norms(changed, adapter) if to_the_end else ():
            _fold(changed, norm, () if adapter.raw_head else outer_readers(changed, adapter))
        for axis in () if adapter.raw_head else stream_writers(changed, adapter):
            parameter = changed.get_parameter(axis.parameter)
            exact = parameter.double()
            parameter.copy_(exact - exact.mean(dim=axis.dim, keepdim=True))
    return changed


def canonical_entries(model: PreTrainedModel, adapter: Adapter) -> dict[str, Any]:
    """Returns the entries of the config in which a model's canonical form may differ.

    Args:
        model: A model with a task head.
        adapter: Its family's table.
    """
    # Queries, keys and values receive the biases of the normalisations that they read.
    found: dict[str, Any] = {"qkv_bias": True} if hasattr(model.config, "qkv_bias") else {}
    return {**found, **_pool_entries(adapter)}


def _pool_entries(adapter: Adapter) -> dict[str, Any]:
    pool = adapter.attention_pool
    return {} if pool is None else {f"{adapter.config}.{pool.switch}": False}


def _without_pool(model: PreTrainedModel, adapter: Adapter) -> PreTrainedModel:
    """A copy without the attention pool, which reads the stream beside the task head."""
    entries = _pool_entries(adapter)
    if not entries:
        return copy.deepcopy(model)
    config = copy.deepcopy(model.config)
    set_entries(config, entries)
    with torch.random.fork_rng(devices=[]):
        changed = type(model)(config).to(model.device, model.dtype)
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            parameter.copy_(model.get_parameter(name))
    return changed.train(model.training)


def stream_writers(model: PreTrainedModel, adapter: Adapter) -> tuple[Axis, ...]:
    """Returns the axes that write to the residual stream, normalisations and scales left out."""
    stream = next(g for g in merge_groups(model, adapter) if g.role == "stream")
    modules = dict(model.named_modules())
    scales = [
        scale
        for block in blocks(model, adapter)
        for scale in (block.attention_scale, block.mlp_scale)
    ]
    return tuple(
        axis
        for axis in stream.writers
        if axis.parameter not in scales
        and not isinstance(modules.get(axis.parameter.rpartition(".")[0]), nn.LayerNorm)
    )


def _last_norms(model: PreTrainedModel, adapter: Adapter) -> list[str]:
    """The normalisations after the blocks that the model has."""
    names = Names(model, adapter)
    places = [place for norm in adapter.norms for place in names.places(norm)]
    return [place for place in places if any(names.weight_and_bias(place))]


def _fold(
    model: nn.Module, norm: str, readers: tuple[str, ...], unbiased: tuple[str, ...] = ()
) -> None:
    """Moves a normalisation's gain and bias into the linear layers that read it.

    Keys may be unbiased: what a bias adds to the scores of a query, softmax ignores.
    """
    plain = model.get_submodule(norm)
    if not isinstance(plain, nn.LayerNorm):
        raise HfZipError(f"{norm} is a {type(plain).__name__}, but only LayerNorm can be folded")
    gain, shift = plain.weight.double(), plain.bias.double()
    for name in readers:
        linear = model.get_submodule(name)
        if not isinstance(linear, nn.Linear):
            raise HfZipError(f"{name} is a {type(linear).__name__}, but should be a Linear")
        weight, parts = linear.weight.double(), linear.in_features // len(gain)
        if name not in unbiased:
            bias = weight @ shift.repeat(parts)
            if linear.bias is not None:
                bias = bias + linear.bias.double()
            linear.bias = nn.Parameter(bias.to(linear.weight.dtype))
        linear.weight.copy_(weight * gain.repeat(parts))
    plain.weight.fill_(1)
    plain.bias.fill_(0)


def _fold_scale(model: nn.Module, scale: str | None, writer: str) -> None:
    """Moves what scales the output of a linear layer into the layer."""
    if scale is None:
        return
    factors = model.get_parameter(scale)
    for parameter in model.get_submodule(writer).parameters():
        scaled = factors.double() * parameter.double().movedim(0, -1)
        parameter.copy_(scaled.movedim(-1, 0))
    factors.fill_(1)
