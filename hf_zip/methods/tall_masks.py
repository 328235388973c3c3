"""TALL-masks: the sum of task vectors, of which every model takes what is mostly its own."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_zip.combining.unified import nearer_to_own
from hf_zip.masking import merge_masked
from hf_zip.method import MergeInputs, MergeMethod, Requires
from hf_zip.outcome import Merged
from hf_zip.ranges import check_between


@dataclass(frozen=True)
class TallMasksOptions:
    """How much of the sum there is, and what of it a model takes.

    Args:
        threshold: A model takes a number that it changed by more than so many times what the sum
            has of others there; the paper's λ, chosen from 0.2 to 0.6 there.
        scaling: Factor of the sum of task vectors; at 1 what only one model changed is its own.
    """

    threshold: float = 0.4
    scaling: float = 1.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_between("threshold", self.threshold, 0, float("inf"))


@dataclass(frozen=True)
class TallMasksModelOptions:
    """Options of one model.

    Args:
        threshold: Its own threshold; left out, the method's.
    """

    threshold: float | None = None

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.threshold is not None:
            check_between("threshold", self.threshold, 0, float("inf"))


def run(inputs: MergeInputs, options: TallMasksOptions) -> Merged:
    """Returns the sum of task vectors, and for every model a mask of what it takes of it.

    Source: TALL-masks (https://arxiv.org/abs/2405.07813), section 4. The paper chooses λ for every
    task on validation data; here it is an option of every model.
    """
    own = [model.threshold for model in inputs.model_options]
    thresholds = torch.tensor([options.threshold if x is None else x for x in own])

    def select(vectors: Tensor, unified: Tensor) -> Tensor:
        return nearer_to_own(vectors, unified, thresholds.to(vectors).unsqueeze(1))

    return merge_masked(inputs, lambda vectors: options.scaling * vectors.sum(dim=0), select)


ENTRY = MergeMethod(
    name="tall_masks",
    title="TALL-masks: the sum of task vectors, of which each model takes what is mostly its own",
    reference="https://arxiv.org/abs/2405.07813",
    requires=Requires(base=True, shared_init=True, elementwise=True),
    run=run,
    options=TallMasksOptions,
    model_options=TallMasksModelOptions,
    per_task=True,
)
