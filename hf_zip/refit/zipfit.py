"""ZipFit: several pre-norm models → one of the same class, by least squares, layer by layer.

No gradient and no label: every linear layer is solved for what the teachers compute, given what the
merged model itself computes so far.
"""

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from jaxtyping import Float64
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_zip.adapters import Adapter
from hf_zip.align import along
from hf_zip.canonical import canonical, stream_writers
from hf_zip.collect import make_accelerator, make_loader
from hf_zip.errors import HfZipError
from hf_zip.groups import Block, base_name, blocks, head_names
from hf_zip.refit.block import fit_block
from hf_zip.refit.held import Held
from hf_zip.refit.readout import fit_readout
from hf_zip.refit.shape import Heads, choose_shape, possible_shapes
from hf_zip.refit.stream import stream_map
from hf_zip.refit.survey import embedded, survey
from hf_zip.refit.work import Work

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitOptions:
    """How a merge is fitted.

    Args:
        size: Width of the merged model's stream, of its heads in all and of its MLPs, relative to
            one source; from 0.1 to the number of sources.
        penalty: Ridge of the fits inside the blocks, as a share of the mean diagonal of the Gram;
            multiplied by features / rows where there are fewer rows than features.
        head_penalty: The same for the task head.
        heads: "all" keeps every head of every source at a lower rank; "select" keeps as many heads
            as one source has, at full rank; "auto" selects where that loses next to nothing
            (sources that share their heads) and where the ranks do not divide.
        memory: What each process may hold of the calibration set's streams in memory, in GiB; the
            rest goes to temporary files.
    """

    size: float = 1.0
    penalty: float = 1e-3
    head_penalty: float = 1e-3
    heads: Heads = "auto"
    memory: float = 4.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not self.size >= 0.1:
            raise HfZipError(f"zipfit's size is {self.size}; it should be at least 0.1")
        for name in ("penalty", "head_penalty", "memory"):
            value = getattr(self, name)
            if not value >= 0:
                raise HfZipError(f"zipfit's {name} is {value}; it should be at least 0")


@dataclass(frozen=True)
class Fitted:
    """A fitted trunk, its heads, and how well each part fits.

    Args:
        state: Parameters by name, heads left out.
        heads: For each teacher its head's parameters on the merged features.
        config: Entries of the config that differ from the teachers'.
        explained: Shares of energy, at most 1. "stream": what one stream can hold of the streams of
            all teachers. "layers.N.attention" and "layers.N.mlp": what the merged model's stream,
            after that part of that block, has of the teachers' streams mapped to it.
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
        HfZipError: There are fewer than two inputs or all are the same, the sizes do not divide
            into heads or are larger than all models together, or the models are not pre-norm or
            have no head.
    """
    _check(models, inputs, options)
    accelerator = accelerator or make_accelerator()
    teachers = tuple(canonical(model, adapter).to(accelerator.device).eval() for model in models)
    layers = blocks(teachers[0], adapter)
    shapes = possible_shapes(teachers[0], layers[0], len(teachers), options.size, options.heads)
    loader = make_loader(inputs, batch_size, accelerator)
    bar = partial(tqdm, disable=not progress, leave=False)
    moment, contexts = survey(
        teachers, adapter, layers, bar(loader, desc="survey"), len(shapes) > 1, accelerator
    )
    shape = choose_shape(shapes, contexts)
    one_stream = stream_map(moment, len(teachers), shape.width)
    config = shape.config()
    if hasattr(teachers[0].config, "qkv_bias"):
        config["qkv_bias"] = True
    student = _student(teachers[0], config)
    _embed(student, teachers, adapter, one_stream.matrix)

    explained = {"stream": one_stream.explained}
    with Held(options.memory, accelerator.device) as held:
        num_batches, num_tokens = _hold_embeddings(held, (student, *teachers), adapter, loader)
        work = Work(
            student=student,
            teachers=teachers,
            shape=shape,
            matrix=one_stream.matrix.to(student.device, student.dtype),
            penalty=options.penalty,
            held=held,
            num_batches=num_batches,
            num_rows=len(inputs) * num_tokens,
            accelerator=accelerator,
        )
        if accelerator.is_main_process:
            _warn_of_few_rows(work, layers[0], len(inputs))
        for position, layer in enumerate(bar(layers, desc="fitting blocks")):
            for part, share in fit_block(work, layer).items():
                explained[f"layers.{position}.{part}"] = share
        heads = fit_readout(work, adapter, loader, options.head_penalty)
    prefixes = tuple(f"{name}." for name in head_names(student, adapter))
    state = {
        name: parameter.detach().cpu()
        for name, parameter in student.named_parameters()
        if not name.startswith(prefixes)
    }
    return Fitted(state=state, heads=heads, config=config, explained=explained)


def _check(models: Sequence[PreTrainedModel], inputs: Any, options: FitOptions) -> None:
    if options.size > len(models):
        raise HfZipError(
            f"zipfit's size is {options.size}, larger than all {len(models)} models together; it "
            "should be at most their number"
        )
    if len(inputs) < 2:
        raise HfZipError(
            f"zipfit is given {len(inputs)} calibration input(s); it needs at least two different "
            "ones, better a thousand"
        )


def _student(teacher: PreTrainedModel, changes: Mapping[str, Any]) -> PreTrainedModel:
    """A model of the merged size whose normalisations are plain; everything else is to be set."""
    config = copy.deepcopy(teacher.config)
    for key, value in changes.items():
        setattr(config, key, value)
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
    matrix: Float64[Tensor, "width n"],
) -> None:
    """Sets the embeddings, which are linear in the stream: mapping them is exact."""
    names = {base_name(student, adapter, name) for name in adapter.embeddings}
    for axis in stream_writers(student, adapter):
        if axis.parameter in names:
            parts = [teacher.get_parameter(axis.parameter).to(matrix) for teacher in teachers]
            mapped = along(torch.cat(parts, axis.dim), axis.dim, matrix)
            student.get_parameter(axis.parameter).copy_(mapped)


def _hold_embeddings(
    held: Held,
    models: Sequence[PreTrainedModel],
    adapter: Adapter,
    loader: Iterable[Mapping[str, Tensor]],
) -> tuple[int, int]:
    """Holds all streams before the first block; returns how many batches, and tokens per input.

    The merged model is the first.
    """
    count, num_tokens = 0, 1
    for inputs in loader:
        merged, *streams = embedded(models, adapter, inputs)
        held["merged", count] = merged
        held["teachers", count] = torch.cat(streams, dim=-1)
        count, num_tokens = count + 1, merged.shape[1]
    return count, num_tokens


def _warn_of_few_rows(work: Work, layer: Block, num_inputs: int) -> None:
    contexts = work.teachers[0].get_submodule(layer.output).in_features * len(work.teachers)
    largest = max(work.shape.width, work.shape.units, contexts)
    fits = (
        ("the blocks are", work.num_rows, largest),
        ("the task head is", num_inputs, work.shape.width),
    )
    for what, rows, features in fits:
        if rows < features:
            logger.warning(
                "%s fitted on %s rows for up to %s features, so the ridge is raised up to %.3g "
                "times; give more inputs",
                what,
                rows,
                features,
                features / rows,
            )
