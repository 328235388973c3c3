"""The way of every refit: the embeddings mapped, block after block fitted, then the heads."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from accelerate.utils import tqdm
from jaxtyping import Float64
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_zip.adapters import Adapter
from hf_zip.canonical import canonical, canonical_entries
from hf_zip.collect import make_accelerator, make_loader
from hf_zip.errors import HfZipError
from hf_zip.groups import (
    Block,
    attention_pool,
    blocks,
    head_names,
    merge_groups,
    outer_readers,
)
from hf_zip.names import config_of
from hf_zip.refit.embeddings import hold_embeddings, set_embeddings
from hf_zip.refit.head import trunk_of
from hf_zip.refit.held import Held
from hf_zip.refit.readout import fit_readout, spaces_side_by_side
from hf_zip.refit.reconfigured import reconfigured
from hf_zip.refit.shape import Shape
from hf_zip.refit.work import Work

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RidgeOptions:
    """How every layer is fitted.

    Args:
        penalty: Ridge of the fits inside the blocks, as a share of the mean diagonal of the Gram;
            multiplied by features / rows where there are fewer rows than features.
        head_penalty: The same for the task head.
        memory: What each process may hold of the calibration set's streams in memory, in GiB; the
            rest goes to temporary files.
    """

    penalty: float = 1e-3
    head_penalty: float = 1e-3
    memory: float = 4.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name in ("penalty", "head_penalty", "memory"):
            value = getattr(self, name)
            if not value >= 0:
                raise HfZipError(f"the refit's {name} is {value}; it should be at least 0")


@dataclass(frozen=True)
class Fitted:
    """A fitted trunk, its heads, and how well each part fits.

    Args:
        state: Parameters by name, heads left out.
        heads: For each teacher its head's parameters on the merged features.
        config: Entries of the config that differ from the teachers'.
        explained: Shares of energy, at most 1. "layers.N.attention" and "layers.N.mlp": what the
            merged model's stream, after that part of that block, has of the teachers' streams
            mapped to it.
    """

    state: dict[str, Tensor]
    heads: tuple[dict[str, Tensor], ...]
    config: Mapping[str, Any]
    explained: Mapping[str, float]


@dataclass(frozen=True)
class Setting:
    """What a refit runs on.

    Args:
        teachers: The models, pre-norm ones in canonical form, on the accelerator's device.
        adapter: Their family's table.
        layers: Names of the modules of their blocks.
        num_inputs: Number of calibration inputs.
        loader: The batches of this process.
        accelerator: Adds up the sums of all processes.
        progress: Show progress bars, on the main process.
    """

    teachers: tuple[PreTrainedModel, ...]
    adapter: Adapter
    layers: tuple[Block, ...]
    num_inputs: int
    loader: Iterable[Mapping[str, Tensor]]
    accelerator: Accelerator
    progress: bool

    def bar(self, items: Iterable[Any], title: str) -> Iterable[Any]:
        """Returns items with a progress bar."""
        return tqdm(items, desc=title, disable=not self.progress, leave=False)


def make_setting(
    models: Sequence[PreTrainedModel],
    adapter: Adapter,
    inputs: Any,
    batch_size: int = 32,
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> Setting:
    """Returns what a refit runs on, with copies of pre-norm models in canonical form.

    Args:
        models: Models of one class; left unchanged, but on another device.
        adapter: Their family's table.
        inputs: A map-style data set of keyword arguments, the same for all models.
        batch_size: Inputs per forward.
        accelerator: The accelerator to run under; made here when left out.
        progress: Show progress bars, on the main process.

    Raises:
        HfZipError: There are fewer than two inputs, or the models add something to the scores of
            their attention or read their stream by something else than task heads.
    """
    check_scores(models[0], adapter)
    check_outputs(models[0], adapter)
    if len(inputs) < 2:
        raise HfZipError(
            f"the refit is given {len(inputs)} calibration input(s); it needs at least two "
            "different ones, better a thousand"
        )
    accelerator = accelerator or make_accelerator()
    if adapter.pre_norm:
        # Where they ran there may be no float64, which the canonical form takes.
        with_heads = bool(head_names(models[0], adapter))
        models = [canonical(model.cpu(), adapter, to_the_end=with_heads) for model in models]
    return Setting(
        teachers=tuple(model.to(accelerator.device).eval() for model in models),
        adapter=adapter,
        layers=blocks(models[0], adapter),
        num_inputs=len(inputs),
        loader=make_loader(inputs, batch_size, accelerator),
        accelerator=accelerator,
        progress=progress,
    )


def check_scores(model: PreTrainedModel, adapter: Adapter) -> None:
    """Checks that the scores of a model's attention are those of queries and keys and no more.

    Args:
        model: One of the models.
        adapter: Their family's table.

    Raises:
        HfZipError: A parameter adds to them.
    """
    axes = [axis for group in merge_groups(model, adapter) for axis in group.axes]
    for axis in axes:
        if axis.per_head:
            raise HfZipError(
                f"{axis.parameter} adds to the scores of the attention, which no refit of the "
                "layers takes into account; use 'permute', 'zipit' or 'rotate' without one"
            )


def check_outputs(model: PreTrainedModel, adapter: Adapter) -> None:
    """Checks that nothing but blocks, task heads and what feeds these reads a model's stream.

    Args:
        model: One of the models.
        adapter: Their family's table.

    Raises:
        HfZipError: Something does.
    """
    heads = head_names(model, adapter)
    feeding = [
        pooler.dense
        for pooler in adapter.poolers
        if set(pooler.readers) & set(heads) and (pooler.spaces or not adapter.pre_norm)
    ]
    # Beside a head a pool is left out; without one it is what the model is for.
    pools = () if heads else attention_pool(model, adapter)
    for reader in (*outer_readers(model, adapter), *pools):
        if reader not in heads and not reader.endswith(tuple(feeding)):
            raise HfZipError(
                f"{reader} of {type(model).__name__} reads the stream and has no row per label, "
                "and nothing but such heads is refitted; use 'permute' or 'zipit'"
            )


def fit_model(
    setting: Setting,
    shape: Shape,
    matrix: Float64[Tensor, "width n"],
    fit: Callable[[Work, Block], Mapping[str, float]],
    options: RidgeOptions,
    num_contexts: int,
) -> Fitted:
    """Returns one model of the teachers' class, each layer fitted to what all of them compute.

    Every process works on its own inputs; each fit reduces its sums once, so all processes solve
    the same systems.

    Args:
        setting: The teachers and what they run on.
        shape: Sizes of the merged model.
        matrix: Maps the teachers' streams, side by side, to the merged one; its outputs sum to
            zero over the features, as LayerNorm ignores their mean, unless the head reads it.
        fit: Sets one block, moves all streams past it, and says what share of the mapped streams
            the merged one holds after each part.
        options: Ridges and memory.
        num_contexts: Features of the contexts from which an attention's output is fitted.

    Raises:
        HfZipError: The inputs are all the same, or a moment of the fits is not finite.
    """
    teachers, adapter, accelerator = setting.teachers, setting.adapter, setting.accelerator
    own = config_of(teachers[0], setting.layers[0].name)
    prefix = f"{adapter.config}." if hasattr(teachers[0].config, adapter.config) else ""
    sizes = {f"{prefix}{k}": value for k, value in shape.config().items() if hasattr(own, k)}
    spaces = spaces_side_by_side(teachers, adapter)
    config = {**canonical_entries(teachers[0], adapter), **sizes, **spaces}
    student = plain_student(teachers[0], adapter, config)
    explained = set_embeddings(student, teachers, adapter, setting.loader, matrix, accelerator)
    with Held(options.memory, accelerator.device) as held:
        models = (student, *teachers)
        num_batches, num_tokens = hold_embeddings(held, models, adapter, setting.loader)
        work = Work(
            student=student,
            teachers=teachers,
            shape=shape,
            matrix=matrix.to(student.device, student.dtype),
            penalty=options.penalty,
            held=held,
            num_batches=num_batches,
            num_rows=setting.num_inputs * num_tokens,
            accelerator=accelerator,
        )
        if accelerator.is_main_process:
            features = max(shape.width, shape.units, num_contexts)
            warn_of_few_rows("the blocks are", work.num_rows, features)
            if head_names(student, adapter):
                warn_of_few_rows("the task head is", setting.num_inputs, shape.width)
        for position, layer in enumerate(setting.bar(setting.layers, "fitting blocks")):
            for part, share in fit(work, layer).items():
                explained[f"layers.{position}.{part}"] = share
        heads = fit_readout(work, adapter, setting.loader, options.head_penalty)
    return Fitted(trunk_of(student, adapter), heads, config, explained)


def plain_student(
    teacher: PreTrainedModel, adapter: Adapter, changes: Mapping[str, Any]
) -> PreTrainedModel:
    """Returns a model of the merged size, plain normalisations and scales in it; set the rest.

    Args:
        teacher: A model of the same class.
        adapter: Its family's table.
        changes: Entries of the config that differ from its own.
    """
    student = reconfigured(teacher, changes)
    for module in student.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.fill_(1)
            module.bias.fill_(0)
    for block in blocks(student, adapter):
        for scale in (block.attention_scale, block.mlp_scale):
            if scale is not None:
                student.get_parameter(scale).fill_(1)
    return student


def warn_of_few_rows(what: str, rows: int, features: int) -> None:
    """Warns of a fit with fewer rows than features."""
    if rows < features:
        logger.warning(
            "%s fitted on %s rows for up to %s features, so the ridge is raised up to %.3g times; "
            "give more inputs",
            what,
            rows,
            features,
            features / rows,
        )
