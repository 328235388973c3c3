"""Fisher merging: a number counts by how much its model's answers depend on it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from hf_zip.align import mean
from hf_zip.aligned import check_refit, split_heads
from hf_zip.method import MergeInputs, MergeMethod, Requires, WeightOptions
from hf_zip.outcome import Merged
from hf_zip.ranges import check_between
from hf_zip.siblings import SiblingRefit, after_siblings
from hf_zip.weighing.draws import check_likelihood
from hf_zip.weighing.feed import Run
from hf_zip.weighing.fisher import fisher, names_in_trunk
from hf_zip.weighing.regmean import check_shares


@dataclass(frozen=True)
class FisherOptions:
    """How numbers are weighed, and what follows.

    Args:
        floor: The least that a number counts by, above 0, as a share of the mean of its model's
            Fisher information: where no model's answers depend on it, the mean by the models'
            weights is taken.
        normalise: Over which numbers a model's Fisher information is divided by its mean, so that a
            model with larger gradients does not count more: those of a "tensor", of the whole
            "model", or "none", as in the paper. The floor is a share of the same mean, and of that
            of the model if it is "none".
        refit: "head" fits the task heads anew, by least squares on the calibration inputs; "repair"
            restores mean and deviation of what every layer gives.
    """

    floor: float = 0.1
    normalise: Literal["none", "model", "tensor"] = "tensor"
    refit: SiblingRefit = "none"

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_between("floor", self.floor, 1e-300, float("inf"))


def run(inputs: MergeInputs, options: FisherOptions) -> Merged:
    """Returns Σ λ_k F_k θ_k / Σ λ_k F_k, number by number.

    F_k is the diagonal of model k's Fisher information, on inputs of its own where the recipe gives
    some, with labels drawn from its answers; λ_k is its weight, over a mean of F_k if
    `normalise` says so: a few numbers make up most of the norm of F_k.

    Source: Merging Models with Fisher-Weighted Averaging (https://arxiv.org/abs/2111.09832),
    section 3. The mean and the floor are not in its formula. The information is that of whole
    models; heads are not merged.
    """
    check_refit(inputs, options.refit)
    check_shares("fisher", inputs.weights)
    runtime = inputs.runtime
    wholes = runtime.whole or runtime.models
    for whole in wholes:
        check_likelihood("fisher", whole)
    heads, trunks = split_heads(inputs, inputs.states)
    trunk = mean(trunks, inputs.weights)
    sums, totals = dict[str, Tensor](), dict[str, Tensor]()
    for position, (whole, feed) in enumerate(zip(wholes, runtime.feeds, strict=True)):
        title = f"gradients of model {position + 1} of {len(wholes)}"
        names = names_in_trunk(whole, runtime.models[position])
        running = Run(runtime.accelerator, runtime.progress)
        found = fisher(whole, feed, (inputs.seed, position), running, title)
        shared = {name: found[full] for name, full in names.items() if name in trunk}
        means = _means(shared, options.normalise == "tensor")
        weight = inputs.weights[position]
        for name, own in shared.items():
            scale = weight * (means[name] if options.normalise == "none" else 1.0)
            counts = scale * (own / means[name]).clamp(min=options.floor).cpu()
            change = trunks[position][name].double() - trunk[name].double()
            sums[name] = sums[name] + counts * change if name in sums else counts * change
            totals[name] = totals[name] + counts if name in totals else counts
    for name, total in totals.items():
        trunk[name] = (trunk[name].double() + sums[name] / total).to(trunk[name])
    return after_siblings(inputs, trunk, heads, options.refit, inputs.weights)


def _means(values: Mapping[str, Tensor], apart: bool) -> dict[str, float]:
    """The mean of each tensor's numbers, or of those of all; 1 in the place of 0."""
    sums = {name: float(own.sum()) for name, own in values.items()}
    counts = {name: own.numel() for name, own in values.items()}
    if not apart:
        sums = dict.fromkeys(sums, sum(sums.values()))
        counts = dict.fromkeys(counts, sum(counts.values()))
    return {name: sums[name] / counts[name] or 1.0 for name in values}


ENTRY = MergeMethod(
    name="fisher",
    title="Fisher merging: numbers count by how much each model's answers depend on them",
    reference="https://arxiv.org/abs/2111.09832",
    requires=Requires(calibration=True, own_inputs=True, shared_init=True, elementwise=True),
    run=run,
    options=FisherOptions,
    model_options=WeightOptions,
    exact=True,
)
