"""A refit towards the features that merge maps give: the best a matching can do."""

from collections.abc import Mapping, Sequence
from functools import partial, reduce
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from hf_zip.adapters import Adapter
from hf_zip.align import shares, side_by_side
from hf_zip.errors import HfZipError
from hf_zip.groups import Block, MergeGroup, Role, merge_groups
from hf_zip.matching.merge_map import MergeMap
from hf_zip.refit.attention import Heads, fit_attention
from hf_zip.refit.mlp import fit_mlp, normalised
from hf_zip.refit.moments import Moments
from hf_zip.refit.reading import read_teachers
from hf_zip.refit.shape import Shape
from hf_zip.refit.walk import Fitted, RidgeOptions, fit_model, make_setting
from hf_zip.refit.work import Work


@torch.no_grad()
def refit_mapped(
    models: Sequence[PreTrainedModel],
    adapter: Adapter,
    inputs: Any,
    maps: Mapping[str, MergeMap],
    weights: Sequence[float] | None = None,
    options: RidgeOptions | None = None,
    batch_size: int = 32,
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> Fitted:
    """Returns one model whose every linear layer is fitted to the mapped features of all teachers.

    The merge maps say what the features of the merged model should be: the weighted mean of the
    teachers' mapped features. Block by block, each linear layer is the ridge regression of these on
    what the merged model itself computes so far, and the layers that write to the stream are fitted
    to what the merged stream lacks of the mapped one.

    Args:
        models: The teachers, pre-norm models of one class with task heads; left unchanged.
        adapter: Their family's table.
        inputs: A map-style data set of keyword arguments, the same for all teachers.
        maps: Merge maps by name of the merge group; features of groups without one stay where they
            are. Their merged sizes are those of the merged model.
        weights: Share of each teacher in a mean; left out, all are equal.
        options: Ridges and memory.
        batch_size: Inputs per forward.
        accelerator: The accelerator to run under; made here when left out.
        progress: Show a progress bar, on the main process.

    Raises:
        HfZipError: There are fewer than two inputs or all are the same, the maps do not make the
            sizes of one model, or the models are not pre-norm or have no head.

    Source: PLeaS (https://arxiv.org/abs/2407.02447), section 4.2, for least squares after a
    matching. Deviations: in closed form with a ridge, and on the merged model's own features, so
    that each layer makes up for the errors of those before.
    """
    setting = make_setting(models, adapter, inputs, batch_size, accelerator, progress)
    groups = merge_groups(setting.teachers[0], adapter)
    maps_of = partial(side_by_side, maps=maps, weights=shares(len(models), weights))
    (stream,), *inner = (
        [group for group in groups if group.role == role]
        for role in ("stream", "query_key", "value", "mlp")
    )
    groups_of = dict(zip(setting.layers, zip(*inner, strict=True), strict=True))
    shape, matrix = merged_shape(groups, maps), maps_of(stream)
    # A head that reads the stream as it is reads the mean over features, unlike LayerNorm; and a
    # normalisation of the embeddings, feature by feature, could not give what lacks it.
    if not (adapter.raw_head or adapter.embedding_norms):
        matrix = matrix - matrix.mean(dim=0)
    return fit_model(
        setting,
        shape,
        matrix,
        lambda work, layer: _fit_block(work, layer, *map(maps_of, groups_of[layer])),
        options or RidgeOptions(),
        num_contexts=shape.num_heads * shape.head_width,
    )


def merged_shape(groups: Sequence[MergeGroup], maps: Mapping[str, MergeMap]) -> Shape:
    """Returns the sizes of the model that merge maps make; its heads are as wide as the sources'.

    Args:
        groups: The merge groups of the sources.
        maps: Merge maps by group name; groups without one keep their size.

    Raises:
        HfZipError: The maps do not make the sizes of one model.
    """
    sizes: dict[Role, int] = {}
    for group in groups:
        found = maps[group.name].merged_size if group.name in maps else group.size
        if found != sizes.setdefault(group.role, found):
            raise HfZipError(
                f"the map of {group.name!r} makes {found} features, but that of a block before "
                f"makes {sizes[group.role]}; all blocks of a model have the same sizes"
            )
    width = sizes["stream"]
    head_width = next(g.size // g.num_heads for g in groups if g.role == "value")
    if {width, sizes["value"], sizes["query_key"]} != {width} or width % head_width:
        raise HfZipError(
            f"the maps make a stream of {width} features, {sizes['query_key']} features of queries "
            f"and keys, and {sizes['value']} of values; all should be the same multiple of the "
            f"{head_width} features of a head"
        )
    return Shape(width, sizes["mlp"], width // head_width, head_width)


def _fit_block(
    work: Work,
    layer: Block,
    query_key: Float64[Tensor, "width n"],
    value: Float64[Tensor, "width n"],
    mlp: Float64[Tensor, "units m"],
) -> dict[str, float]:
    """Sets one block by the maps of its groups, for the features of all teachers side by side."""
    projections, _ = read_teachers(work, layer)
    heads = _mapped_heads(projections, work, query_key, value)
    parts = zip(mlp.chunk(len(work.teachers), dim=1), work.teachers, strict=True)
    readers = [_mapped(part.to(work.matrix), t.get_submodule(layer.mlp_in)) for part, t in parts]

    def wanted(middle: Float[Tensor, "rows n"]) -> Float[Tensor, "rows units"]:
        streams = normalised(work, layer, middle)
        return reduce(torch.add, (linear(z, *r) for z, r in zip(streams, readers, strict=True)))

    return {
        "attention": fit_attention(work, layer, heads),
        "mlp": fit_mlp(work, layer, wanted),
    }


def _mapped_heads(
    projections: Moments,
    work: Work,
    query_key: Float64[Tensor, "width n"],
    value: Float64[Tensor, "width n"],
) -> Heads:
    """The merged heads: a ridge regression is linear in its targets, so its result is mapped."""
    weight, bias = projections.fit(work.penalty)
    (queries, keys, values), (query_bias, _, _) = weight.chunk(3), bias.chunk(3)
    query_key, value = query_key.to(weight), value.to(weight)
    return Heads(
        query=query_key @ queries,
        query_bias=query_key @ query_bias,
        key=query_key @ keys,
        value=value @ values,
        count=work.shape.num_heads,
    )


def _mapped(matrix: Float[Tensor, "new old"], layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of what a linear layer gives, once it is mapped."""
    return matrix @ layer.get_parameter("weight"), matrix @ layer.get_parameter("bias")
