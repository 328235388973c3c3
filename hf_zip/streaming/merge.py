"""Models in files → their merge in files, parameter by parameter."""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from hf_zip.aligned import split_heads
from hf_zip.assemble import merged_config, stack_heads
from hf_zip.checkpoint import check_finite, quiet, weight_files
from hf_zip.combining.combination import Combination, Parameter
from hf_zip.depth import Assembled
from hf_zip.errors import HfZipError
from hf_zip.learned import counters, learned
from hf_zip.mapped import release_pages
from hf_zip.method import MergeMethod
from hf_zip.needs import resolve_unmerge
from hf_zip.outcome import Merged
from hf_zip.preparation import Prepared, prepare
from hf_zip.recipe import Recipe
from hf_zip.record import (
    config_record,
    early_pictures,
    files,
    make_report,
    resolved_recipe,
)
from hf_zip.report import Report
from hf_zip.save import SHARD, staged
from hf_zip.siblings import merged_pieces
from hf_zip.streaming.lane import Streamed
from hf_zip.streaming.models import NotStreamableError, empty_model, mapped_model, names_in_file
from hf_zip.streaming.writing import TensorWriter, end_of, open_writer

# How much of a written folder is checked before its pages are given back, some 64 KiB for each.
_ENDS_AT_ONCE = 64


@dataclass(frozen=True)
class Written:
    """What is known about a merge that was written.

    Args:
        report: What was merged and found.
        recipe: The resolved recipe.
        processor: The sources' image processor or tokenizer, if they have one.
    """

    report: Report
    recipe: Recipe
    processor: Any


def merge_files(
    request: Streamed,
    method: MergeMethod,
    options: Any,
    out: Path,
    force: bool,
    accelerator: Accelerator,
) -> Written:
    """Merges models in files into a folder, with its report and card, all at once or not at all.

    Of every parameter a few rows at a time are read, merged in float32 and written, where the
    method allows it. The written folder is then checked: it must give a model of its class with
    nothing missing, left over or of another shape or precision, whose parameters begin and end with
    the numbers that were merged.

    Args:
        request: What to merge.
        method: The merge method; it has a combination.
        options: Its options.
        out: The folder; it may hold an older merge.
        force: Go on despite findings that may be forced.
        accelerator: What to run under.

    Raises:
        HfZipError: The models do not allow the merge, or the folder cannot be written.
    """
    started = time.perf_counter()
    prepared = prepare(request, method, force, accelerator, progress=False)
    combination = method.combination or Combination(lambda parameter, setting: parameter.tensors[0])
    unmerge = resolve_unmerge(method, request)
    dtype = getattr(torch, request.recipe.dtype)
    template = prepared.sources[0].model
    with staged(out) as staging:
        merged = _heads(prepared, combination)
        # Its config is complete only when all files are digested; its shapes are known now.
        model = _model(merged, prepared, {}, dtype)
        names = names_in_file(model)
        size = request.recipe.max_shard_size or SHARD
        with open_writer(staging, model, names, size) as writer:
            check = partial(_check_part, prepared)
            for name, start, piece in merged_pieces(prepared.inputs, combination, options, check):
                writer.write(name, start, piece)
            _check_heads(merged, prepared)
            for name, rows in stack_heads(merged, prepared.tasks).items():
                writer.write(name, 0, rows)
            for name, buffer in counters(template).items():
                if name in names:
                    writer.write(name, 0, buffer)
        assembled = Assembled(model, {}, None)
        # Before the digests are waited for, as these may take the other processor a while.
        drawn = early_pictures(assembled, request.recipe, prepared, method, merged)
        prepared = replace(
            prepared,
            sources=tuple(map(request.with_digest, prepared.sources)),
            base=prepared.base and request.with_digest(prepared.base),
        )
        record = config_record(method, options, request.recipe, prepared)
        _save_config(_model(merged, prepared, record, dtype), staging)
        processor = prepared.sources[0].processor
        if processor is not None:
            processor.save_pretrained(staging)
        resolved = resolved_recipe(request.recipe, prepared, options, None, unmerge)
        seconds = time.perf_counter() - started
        report = make_report(assembled, resolved, prepared, method, merged, seconds)
        for name, content in files(resolved, report, drawn).items():
            data = content.encode("utf-8") if isinstance(content, str) else content
            (staging / name).write_bytes(data)
        _check_written(type(model), staging, writer, dtype)
    release_pages()
    return Written(report, resolved, processor)


def _heads(prepared: Prepared, combination: Combination) -> Merged:
    """The heads of the sources, in float32 or better, as what a method leaves of them."""
    inputs = prepared.inputs
    heads, _ = split_heads(inputs, inputs.states)
    ready = tuple({name: _exact(tensor) for name, tensor in head.items()} for head in heads)
    weights = inputs.weights if combination.weighted else ()
    return Merged({}, ready, provenance={"matched_correlation": {}}, weights=weights)


def _check_part(prepared: Prepared, part: Parameter) -> None:
    """Checks numbers that were read, most of them for the first time, as a merge may drop some."""
    for tensor in (part.tensors, *(() if part.base is None else (part.base,))):
        # The sum is many times faster to check, and finite only if all are.
        if not tensor.sum().isfinite() and not tensor.isfinite().all():
            for source in (*prepared.sources, *(() if prepared.base is None else (prepared.base,))):
                check_finite(source.model, source.reference)


def _check_heads(merged: Merged, prepared: Prepared) -> None:
    """Checks the only parameters that were not read for the merge."""
    for source, head in zip(prepared.sources, merged.heads, strict=True):
        if not all(tensor.isfinite().all() for tensor in head.values()):
            check_finite(source.model, source.reference)


def _exact(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _model(
    merged: Merged, prepared: Prepared, record: Mapping[str, Any], dtype: torch.dtype
) -> PreTrainedModel:
    """The merged model on the meta device."""
    template = prepared.sources[0].model
    config = merged_config(merged, template.config, prepared.tasks, record, dtype)
    return empty_model(type(template), config).to(dtype)


def _save_config(model: PreTrainedModel, folder: Path) -> None:
    """Writes all that `save_pretrained` does, but for the weights."""
    with tempfile.TemporaryDirectory(dir=folder) as place, quiet():
        model.save_pretrained(place, state_dict={})
        for path in Path(place).iterdir():
            if path.suffix != ".safetensors":
                path.rename(folder / path.name)


def _check_written(cls: type, folder: Path, writer: TensorWriter, dtype: torch.dtype) -> None:
    """Checks that a written folder gives the model whose parameters were written.

    Raises:
        HfZipError: It does not.
    """
    try:
        reloaded = mapped_model(cls, folder, weight_files(folder, str(folder)))
    except NotStreamableError as error:
        raise HfZipError(
            f"the saved model does not load as it was: {error}; nothing was replaced"
        ) from error
    found = {**learned(reloaded), **counters(reloaded)}
    wrong = [n for n, x in found.items() if x.is_floating_point() and x.dtype != dtype]
    for place, (name, start, numbers) in enumerate(writer.ends):
        if end_of(found[name].view(-1)[start:]) != numbers:
            wrong.append(name)
        if place % _ENDS_AT_ONCE == 0:  # a page is read with those around it
            release_pages()
    if wrong:
        raise HfZipError(
            f"the saved parameters {', '.join(wrong[:3])} differ from what was merged; nothing was "
            "replaced"
        )
