"""Merges that are written as a LoRA of their base: which can be, and how they become one."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from hf_zip.adapter_folder import MergedAdapter
from hf_zip.base_model import base_state
from hf_zip.errors import HfZipError
from hf_zip.extraction import approximated, extract
from hf_zip.method import MergeMethod
from hf_zip.methods import methods
from hf_zip.recipe import Recipe
from hf_zip.report_records import AdapterRecord
from hf_zip.request import Request
from hf_zip.sources import Source
from hf_zip.vocabulary import order_between

_LORA = "output is lora, what the merge changes of its base"


def check_lora(method: MergeMethod, request: Request) -> None:
    """Checks that a merge may be written as an adapter, before anything is loaded.

    Raises:
        HfZipError: The method moves features or keeps weights per task, a part of the blocks is
            shared, or no base that can be named is known.
    """
    if method.per_task or not method.requires.shared_init:
        reason = (
            "gives every task weights of its own, which are no one adapter"
            if method.per_task
            else "moves features, so that little would be left of the base"
        )
        able = [
            repr(name)
            for name, known in methods().items()
            if known.requires.shared_init and not known.per_task
        ]
        raise HfZipError(
            f"{_LORA}, but {method.name!r} {reason}; use one of {', '.join(able)}, or leave output "
            "out"
        )
    if request.recipe.stop_at is not None:
        raise HfZipError(
            f"{_LORA}, but stop_at is {request.recipe.stop_at}, and a partial zip is no model of "
            "the base's class; leave one of the two out"
        )
    if request.recipe.base_model is None:
        raise HfZipError(
            f"{_LORA}, but the models are not adapters of one base, and none is named; give "
            "base_model (--base)"
        )
    if request.base is not None:
        raise HfZipError(
            f"{_LORA}, but the base is in memory, and an adapter names its base; give the folder "
            "or Hub id of the base as base_model"
        )


def as_adapter(
    model: PreTrainedModel,
    recipe: Recipe,
    first: Source,
    base: Source,
    heads: Sequence[str],
) -> tuple[PreTrainedModel, MergedAdapter]:
    """Returns what a base and the adapter of a merge make together, and the adapter.

    Args:
        model: The merged model, in float32 or better.
        recipe: What was asked for.
        first: The first of the models.
        base: The base as it was loaded, its vocabulary in its own order.
        heads: Names of the linear layers that make the task head.

    Raises:
        HfZipError: The model has heads of several kinds, the base is no model that can be named or
            has its words in another order, or no LoRA can hold the changes.
    """
    if base.adapter_base is not None:
        raise HfZipError(
            f"{_LORA}, but base_model {base.reference!r} is an adapter itself; name the model that "
            "it is an adapter of"
        )
    if type(model) is not type(first.model):
        raise HfZipError(
            f"{_LORA}, but the heads of these models stay apart, and {type(model).__name__} is no "
            "model of the base's family; merge models whose heads answer one kind of question"
        )
    if order_between(first, base) is not None:
        raise HfZipError(
            f"{_LORA}, but {base.reference!r} has its words in another order than the models, so "
            "that an adapter of it would have to hold all embeddings; leave output out"
        )
    state = base_state(model, base.model, heads)
    extraction = extract(model, state, recipe.rank)
    # A folder in full, so that the adapter loads from wherever a program is started.
    place = (
        base.reference.partition("@")[0] if base.revision else str(Path(base.reference).resolve())
    )
    dtype: torch.dtype = getattr(torch, recipe.dtype)
    adapter = MergedAdapter(extraction, place, base.revision, dtype)
    return approximated(model, state, extraction, dtype), adapter


def adapter_record(adapter: MergedAdapter) -> AdapterRecord:
    """Returns what a report says of an adapter."""
    extraction = adapter.extraction
    worst, share = extraction.worst
    return AdapterRecord(
        base=adapter.base,
        revision=adapter.revision,
        rank=extraction.rank,
        modules=len(extraction.factors),
        error=extraction.error,
        worst=worst,
        worst_error=share,
        whole=extraction.whole,
    )
