"""MagMax: of every number the largest change that any model made."""

from torch import Tensor

from hf_zip.combining.combination import (
    Combination,
    Parameter,
    Setting,
    added,
    always,
    weights_of,
)
from hf_zip.combining.masks import largest
from hf_zip.method import MergeInputs, MergeMethod, Requires, WeightOptions
from hf_zip.outcome import Merged
from hf_zip.siblings import ScaledOptions, merge_siblings


def _merge(parameter: Parameter, setting: Setting) -> Tensor:
    vectors = parameter.task_vectors
    return largest(weights_of(setting, vectors) * vectors)


COMBINATION = Combination(added(_merge), by_rows=always)


def run(inputs: MergeInputs, options: ScaledOptions) -> Merged:
    """Returns the base plus, of every number, the largest change among the models.

    Source: MagMax (https://arxiv.org/abs/2407.06322), whose models are fine-tuned one
    after another; here all come from the base.
    """
    return merge_siblings(inputs, COMBINATION, options)


ENTRY = MergeMethod(
    name="magmax",
    title="MagMax: of every number the largest change that any model made",
    reference="https://arxiv.org/abs/2407.06322",
    requires=Requires(base=True, shared_init=True, elementwise=True),
    run=run,
    options=ScaledOptions,
    model_options=WeightOptions,
    exact=True,
    combination=COMBINATION,
)
