"""ZipFit of post-norm models, top to bottom: embeddings, blocks, poolers, task heads.

The residual stream of a post-norm model has the gain and bias of its last normalisation in it, so
models have no streams that could share one basis. Without these it has the same norm everywhere:
that is what is mapped to one.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from hf_zip.adapters import Adapter
from hf_zip.groups import Block, base_name, head_names
from hf_zip.refit.block import choose_units, keep_heads, kept_units, lower_heads
from hf_zip.refit.head import trunk_of
from hf_zip.refit.held import Held
from hf_zip.refit.post_norm.attention import fit_attention, read_teachers
from hf_zip.refit.post_norm.basis import choose_basis, plain_norm
from hf_zip.refit.post_norm.embedding import fit_embeddings
from hf_zip.refit.post_norm.form import check_post_norm
from hf_zip.refit.post_norm.mlp import fit_mlp
from hf_zip.refit.post_norm.pooler import fit_poolers
from hf_zip.refit.post_norm.running import embedded, make_batch
from hf_zip.refit.post_norm.survey import survey
from hf_zip.refit.post_norm.work import PostNormWork
from hf_zip.refit.readout import fit_readout
from hf_zip.refit.shape import ZipShape, choose_shape, possible_shapes
from hf_zip.refit.walk import Fitted, make_setting, plain_student, warn_of_few_rows
from hf_zip.refit.zipfit import FitOptions


@torch.no_grad()
def zipfit_post_norm(
    models: Sequence[PreTrainedModel],
    adapter: Adapter,
    inputs: Any,
    options: FitOptions,
    batch_size: int = 32,
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> Fitted:
    """Returns one model of the teachers' class that computes what all of them compute.

    The counterpart of `zipfit` for models that normalise what their blocks have written. Gains and
    biases are taken out of the teachers' streams before these are mapped to one; embeddings are
    fitted word by word; what attention writes is fitted to what is added to the stream, and what
    the MLP writes to where the map would have the stream. Copies of one model are merged in its own
    features, where all of this is exact. Padding enters no fit.

    Args:
        models: The teachers, post-norm models of one class; left unchanged.
        adapter: Their family's table.
        inputs: A map-style data set of keyword arguments, the same for all teachers.
        options: How to fit.
        batch_size: Inputs per forward.
        accelerator: The accelerator to run under; made here when left out.
        progress: Show a progress bar, on the main process.

    Raises:
        HfZipError: There are fewer than two inputs or all are the same, the sizes do not divide
            into heads or are larger than all models together, or the models have no LayerNorm,
            embeddings that are projected to the stream, or outputs that are not task heads.
    """
    options.check_size(len(models))
    check_post_norm(adapter)
    setting = make_setting(models, adapter, inputs, batch_size, accelerator, progress)
    teachers, layers = setting.teachers, setting.layers
    batches = tuple(make_batch(teachers[0], layers[0], given) for given in setting.loader)
    shapes = possible_shapes(teachers[0], layers[0], len(teachers), options.size, options.heads)
    first = base_name(teachers[0], adapter, adapter.embedding_norms[0])
    norms = [first, *(name for at in layers for name in (at.attention_norm, at.mlp_norm))]
    plains = {name: plain_norm(teachers, name) for name in norms}
    found = survey(setting, batches, first, plains, len(shapes) > 1)
    shape = choose_shape(shapes, found.contexts)
    basis = choose_basis(found.moment, plains, len(teachers), shape.width)
    config: dict[str, Any] = shape.config()
    config[adapter.units] = config.pop("intermediate_size")
    config |= dict.fromkeys(adapter.widths, shape.width)
    student = plain_student(teachers[0], adapter, config)
    if basis.own:
        _keep_norms(student, teachers[0], norms)
    explained = {"stream": basis.explained}
    with Held(options.memory, setting.accelerator.device) as held:
        work = PostNormWork(
            student=student,
            teachers=teachers,
            shape=shape,
            matrix=basis.matrix,
            penalty=options.penalty,
            held=held,
            num_batches=len(batches),
            num_rows=found.num_rows,
            accelerator=setting.accelerator,
            batches=batches,
            basis=basis,
        )
        if setting.accelerator.is_main_process:
            _warn(work, adapter, layers[0], setting.num_inputs)
        for batch, given in enumerate(batches):
            held["teachers", batch] = torch.cat(embedded(teachers, layers[0], given), dim=-1)
        fit_embeddings(work, adapter, layers[0], first)
        for batch, given in enumerate(batches):
            held["merged", batch] = embedded([student], layers[0], given)[0]
        before = first
        for position, layer in enumerate(setting.bar(layers, "fitting blocks")):
            for part, share in _fit_block(work, layer, before, shape).items():
                explained[f"layers.{position}.{part}"] = share
            before = layer.mlp_norm
        fit_poolers(work, adapter, options.head_penalty)
        heads = fit_readout(work, adapter, [b.inputs for b in batches], options.head_penalty)
    return Fitted(trunk_of(student, adapter), heads, config, explained)


def _fit_block(work: PostNormWork, layer: Block, norm: str, shape: ZipShape) -> dict[str, float]:
    """Sets one block and moves all streams past it; `norm` is the normalisation before it."""
    all_units = len(work.teachers) * work.teachers[0].get_submodule(layer.mlp_out).in_features
    reading = read_teachers(work, layer, norm, choosing=shape.units < all_units)
    units = choose_units(reading.activity, work, layer)

    def wanted(middle: Float[Tensor, "rows n"]) -> Float[Tensor, "rows units"]:
        return kept_units(work, layer, units, middle.chunk(len(work.teachers), dim=1))

    heads = lower_heads(reading.projections, work, shape)
    keep = partial(keep_heads, shape=shape, penalty=work.penalty)
    fit_attention(work, layer, heads, reading.carry, keep)
    return fit_mlp(work, layer, wanted)


def _keep_norms(student: PreTrainedModel, teacher: PreTrainedModel, names: Sequence[str]) -> None:
    """Gives the merged model a teacher's normalisations."""
    for name in names:
        student.get_submodule(name).load_state_dict(teacher.get_submodule(name).state_dict())


def _warn(work: PostNormWork, adapter: Adapter, layer: Block, num_inputs: int) -> None:
    contexts = len(work.teachers) * work.teachers[0].get_submodule(layer.output).in_features
    features = max(work.matrix.shape[1], work.shape.units, contexts)
    warn_of_few_rows("the blocks are", work.num_rows, features)
    if head_names(work.student, adapter):
        warn_of_few_rows("the task head is", num_inputs, work.shape.width)
