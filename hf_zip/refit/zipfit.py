"""ZipFit: several pre-norm models → one of the same class, by least squares, layer by layer.

No gradient and no label: every linear layer is solved for what the teachers compute, given what the
merged model itself computes so far.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from hf_zip.adapters import Adapter
from hf_zip.errors import HfZipError
from hf_zip.refit.block import fit_block
from hf_zip.refit.shape import Heads, choose_shape, possible_shapes
from hf_zip.refit.stream import anchored_map, stream_map
from hf_zip.refit.survey import survey
from hf_zip.refit.walk import Fitted, RidgeOptions, fit_model, make_setting


@dataclass(frozen=True)
class FitOptions(RidgeOptions):
    """How a merge is fitted.

    Args:
        penalty: See `RidgeOptions`; so are the next two.
        head_penalty: See `penalty`.
        memory: See `penalty`.
        size: Width of the merged model's stream, of its heads in all and of its MLPs, relative to
            one source; from 0.1 to the number of sources.
        heads: "all" keeps every head of every source at a lower rank; "select" keeps as many heads
            as one source has, at full rank; "auto" selects where that loses next to nothing
            (sources that share their heads) and where the ranks do not divide.
    """

    size: float = 1.0
    heads: Heads = "auto"

    def __post_init__(self) -> None:
        """Checks the ranges."""
        super().__post_init__()
        if not self.size >= 0.1:
            raise HfZipError(f"zipfit's size is {self.size}; it should be at least 0.1")

    def check_size(self, num_models: int) -> None:
        """Checks the size against the number of models.

        Raises:
            HfZipError: It is larger than all of them together.
        """
        if self.size > num_models:
            raise HfZipError(
                f"zipfit's size is {self.size}, larger than all {num_models} models together; it "
                "should be at most their number"
            )


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
    one. Of what is explained, "stream" is what one stream can hold of the streams of all teachers.

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
    options.check_size(len(models))
    setting = make_setting(models, adapter, inputs, batch_size, accelerator, progress)
    teachers, layers = setting.teachers, setting.layers
    shapes = possible_shapes(teachers[0], layers[0], len(teachers), options.size, options.heads)
    moment, contexts = survey(
        teachers,
        adapter,
        layers,
        setting.bar(setting.loader, "survey"),
        len(shapes) > 1,
        setting.accelerator,
    )
    shape = choose_shape(shapes, contexts)
    kept = adapter.embedding_norms or adapter.raw_head
    stream = (anchored_map if kept else stream_map)(moment, len(teachers), shape.width)
    fitted = fit_model(
        setting,
        shape,
        stream.matrix,
        partial(fit_block, shape=shape),
        options,
        num_contexts=teachers[0].get_submodule(layers[0].output).in_features * len(teachers),
    )
    return replace(fitted, explained={"stream": stream.explained, **fitted.explained})
