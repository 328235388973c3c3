"""ZipFit: several pre-norm models → one of the same class, by least squares, layer by layer.

No gradient and no label: every linear layer is solved for what the teachers compute, given what the
merged model itself computes so far.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from hf_zip.adapters import Adapter
from hf_zip.align import along
from hf_zip.canonical import canonical, stream_writers
from hf_zip.collect import Observation, collect, make_accelerator
from hf_zip.errors import HfZipError
from hf_zip.groups import Block, Tap, base_name, blocks, head_names
from hf_zip.matching.selection import select_heads
from hf_zip.refit.block import Batch, Shape, fit_block
from hf_zip.refit.ridge import ridge
from hf_zip.refit.stream import StreamMap, stream_map
from hf_zip.statistics.covariance import Covariance

REDUNDANT = 1e-3


@dataclass(frozen=True)
class FitOptions:
    """How a merge is fitted.

    Args:
        size: Width of the merged stream, of its heads in all and of its MLPs, relative to one
            model.
        penalty: Ridge of the fits inside the blocks, as a share of the mean diagonal of the Gram.
        head_penalty: Ridge of the task head.
        heads: "all" keeps every head of every model at a lower rank; "select" keeps as many heads
            as one model has, at full rank; "auto" selects where that loses next to nothing (models
            that share their heads) and where the ranks do not divide.
    """

    size: float = 1.0
    penalty: float = 1e-3
    head_penalty: float = 1e-3
    heads: Literal["auto", "all", "select"] = "auto"


@dataclass(frozen=True)
class Fitted:
    """A fitted trunk, its heads, and how well each part fits.

    Args:
        state: Parameters by name, heads left out.
        heads: For each teacher its head's parameters on the merged features.
        config: Entries of the config that differ from the teachers'.
        explained: Share of the variance that the stream map keeps and that each fit explains, by
            layer, in [0, 1].
    """

    state: dict[str, Tensor]
    heads: tuple[dict[str, Tensor], ...]
    config: Mapping[str, Any]
    explained: Mapping[str, float]


@torch.no_grad()
def zipfit(
    models: Sequence[PreTrainedModel],
    adapter: Adapter,
    inputs: Any,
    options: FitOptions,
    batch_size: int = 32,
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> Fitted:
    """Returns one model of the teachers' class that computes what all of them compute.

    The streams of all teachers are mapped to one by their principal directions; then, block by
    block, queries, keys, values and MLP inputs are regressed on the merged model's own normalised
    stream, heads are truncated to the rank that the merged size allows, and the layers that write
    to the stream are regressed on the residual between the mapped teachers' streams and the merged
    one. Every process works on its own inputs; each fit reduces its sums once, so all processes
    solve the same systems.

    Args:
        models: The teachers, pre-norm models of one class with task heads; left unchanged.
        adapter: Their family's table.
        inputs: A map-style data set of keyword arguments, the same for all teachers.
        options: How to fit.
        batch_size: Inputs per forward.
        accelerator: The accelerator to run under; made here when left out.
        progress: Show a progress bar, on the main process.

    Raises:
        HfZipError: There are no inputs, the sizes do not divide into heads, or the models are not
            pre-norm or have no head.
    """
    accelerator = accelerator or make_accelerator()
    teachers = [canonical(model, adapter).to(accelerator.device).eval() for model in models]
    layers = blocks(teachers[0], adapter)
    stream, contexts = _survey(teachers, adapter, layers, inputs, batch_size, accelerator, progress)
    shape = _shape(teachers[0], layers[0], len(teachers), options, contexts)
    chosen_map = stream_map(stream, len(teachers), shape.width)
    student = _student(teachers[0], shape)
    _embed(student, teachers, adapter, chosen_map)
    explained = {"stream map": chosen_map.explained}

    loader = DataLoader(inputs, batch_size=batch_size, shuffle=False)
    work = [
        Batch.start(student, teachers, batch, base_name(student, adapter, adapter.embedding_output))
        for batch in accelerator.prepare(loader)
    ]
    matrix = chosen_map.matrix.to(student.dtype).to(accelerator.device)
    num_rows = len(inputs) * (work[0].merged.shape[1] if work else 1)
    for layer in tqdm(layers, desc="fitting blocks", disable=not progress, leave=False):
        fits = fit_block(
            student,
            teachers,
            layer,
            matrix,
            shape,
            work,
            options.penalty,
            num_rows,
            accelerator,
        )
        explained |= {f"{layer.name}.{part}": share for part, share in fits.items()}
    del work
    heads = _fit_heads(student, teachers, adapter, inputs, options, batch_size, accelerator)
    prefixes = tuple(f"{name}." for name in head_names(student, adapter))
    return Fitted(
        state={
            name: parameter.detach().cpu()
            for name, parameter in student.named_parameters()
            if not name.startswith(prefixes)
        },
        heads=heads,
        config={
            **shape.config(),
            **({"qkv_bias": True} if hasattr(student.config, "qkv_bias") else {}),
        },
        explained=explained,
    )


def _survey(
    teachers: Sequence[PreTrainedModel],
    adapter: Adapter,
    layers: Sequence[Block],
    inputs: Any,
    batch_size: int,
    accelerator: Accelerator,
    progress: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """The second moments of all teachers' streams at every position, and of their contexts."""
    count, model = len(teachers), teachers[0]
    places = [Tap(base_name(model, adapter, adapter.embedding_output), "output")]
    for layer in layers:
        places += [Tap(layer.mlp_norm, "input"), Tap(layer.name, "output")]
    contexts = [Tap(layer.output, "input") for layer in layers]
    width = model.get_submodule(layers[0].mlp_out).out_features
    heads = model.get_submodule(layers[0].output).in_features
    observations = [
        Observation(size * count, tuple((k, tap) for k in range(count)))
        for taps, size in ((places, width), (contexts, heads))
        for tap in taps
    ]
    found = collect(teachers, inputs, observations, Covariance, batch_size, accelerator, progress)
    moments = [c.covariance() + torch.outer(c.mean(), c.mean()) for c in found[: len(places)]]
    return moments, [c.covariance() for c in found[len(places) :]]


def _shape(
    model: PreTrainedModel,
    block: Block,
    num_models: int,
    options: FitOptions,
    contexts: Sequence[Tensor],
) -> Shape:
    """The sizes of the merged model, and which heads it keeps."""
    width = model.get_submodule(block.mlp_out).out_features
    units = model.get_submodule(block.mlp_out).in_features
    inner = model.get_submodule(block.output).in_features
    num_heads: int = model.config.num_attention_heads
    head_width = inner // num_heads
    all_heads = num_models * num_heads
    rank = round(options.size * inner / all_heads)
    merged_width = round(options.size * width / all_heads) * all_heads
    divides = merged_width == round(options.size * width) and rank >= 1
    full_size = options.size == 1.0
    select = options.heads == "select" or num_models == 1
    if options.heads == "auto" and full_size and not select:
        lost = [select_heads(c, all_heads, num_heads)[1] for c in contexts]
        select = max(lost) < REDUNDANT or not divides
    if select and not full_size:
        raise HfZipError(
            f"heads can only be selected at size 1, not {options.size}; use heads: all"
        )
    if not select and not divides:
        raise HfZipError(
            f"the {all_heads} heads of {num_models} models do not divide a stream of "
            f"{options.size} x {width} features; use heads: select, or a size of a multiple of "
            f"{all_heads / width:.4g}"
        )
    return Shape(
        width=width if select else merged_width,
        units=max(1, round(options.size * units)),
        num_heads=num_heads if select else all_heads,
        head_width=head_width if select else rank,
        select=select,
        teacher_heads=num_heads,
    )


def _student(teacher: PreTrainedModel, shape: Shape) -> PreTrainedModel:
    """A model of the merged size whose normalisations are plain; everything else is to be set."""
    config = copy.deepcopy(teacher.config)
    for key, value in shape.config().items():
        setattr(config, key, value)
    if hasattr(config, "qkv_bias"):
        config.qkv_bias = True
    with torch.random.fork_rng(devices=[]):
        student = type(teacher)(config)
    for module in student.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.fill_(1)
            module.bias.fill_(0)
    return student.to(teacher.device, teacher.dtype).eval()


def _embed(
    student: PreTrainedModel,
    teachers: Sequence[PreTrainedModel],
    adapter: Adapter,
    found: StreamMap,
) -> None:
    """Sets the embeddings, which are linear in the stream: mapping them is exact."""
    names = {base_name(student, adapter, name) for name in adapter.embeddings}
    for axis in stream_writers(student, adapter):
        if axis.parameter in names:
            side_by_side = torch.cat(
                [teacher.get_parameter(axis.parameter).double() for teacher in teachers], axis.dim
            )
            mapped = along(side_by_side, axis.dim, found.matrix.to(side_by_side.device))
            student.get_parameter(axis.parameter).copy_(mapped)


def _fit_heads(
    student: PreTrainedModel,
    teachers: Sequence[PreTrainedModel],
    adapter: Adapter,
    inputs: Any,
    options: FitOptions,
    batch_size: int,
    accelerator: Accelerator,
) -> tuple[dict[str, Tensor], ...]:
    """Each teacher's head, fitted to its logits on what the merged model's head reads."""
    fitted: list[dict[str, Tensor]] = [{} for _ in teachers]
    names = head_names(student, adapter)
    observations, sizes = [], []
    for name in names:
        own = [teacher.get_submodule(name).out_features for teacher in teachers]
        features = student.get_submodule(name).in_features
        answers = ((k, Tap(name, "output")) for k in range(1, len(teachers) + 1))
        places = ((0, Tap(name, "input")), *answers)
        observations.append(Observation(features + sum(own), places))
        sizes.append((features, own))
    found = collect(
        [student, *teachers], inputs, observations, Covariance, batch_size, accelerator, False
    )
    for name, (features, own), statistic in zip(names, sizes, found, strict=True):
        covariance, mean = statistic.covariance(), statistic.mean()
        weight, bias = ridge(
            covariance[:features, :features],
            covariance[features:, :features],
            mean[:features],
            mean[features:],
            options.head_penalty,
        )
        parts = zip(weight.split(own), bias.split(own), strict=True)
        for head, (own_weight, own_bias) in zip(fitted, parts, strict=True):
            head[f"{name}.weight"] = own_weight.to(student.dtype).cpu()
            head[f"{name}.bias"] = own_bias.to(student.dtype).cpu()
    return tuple(fitted)
