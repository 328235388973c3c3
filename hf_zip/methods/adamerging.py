"""AdaMerging: how much of each task vector is added, learnt from unlabelled inputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from hf_zip.align import State, mean
from hf_zip.aligned import check_refit, split_heads
from hf_zip.coefficients import Coefficients, Granularity
from hf_zip.combining.magnitude import thresholds, trim
from hf_zip.combining.signs import agreeing
from hf_zip.method import MergeInputs, MergeMethod, Requires
from hf_zip.outcome import Merged
from hf_zip.ranges import check_between
from hf_zip.siblings import SiblingRefit, after_siblings
from hf_zip.side_by_side import SideBySide, distinct_sets
from hf_zip.training.learner import Learner
from hf_zip.training.options import TrainingOptions
from hf_zip.undecided import (
    check_recomputed,
    deciding_kinds,
    entropy_of_merge,
    identity_of,
)


@dataclass(frozen=True)
class AdaMergingOptions:
    """What is learnt, where it begins, and how.

    Args:
        granularity: "layer" learns a factor for each parameter of each task vector, "task" one for
            each task vector.
        vectors: "plain" task vectors; "ties" those that TIES has trimmed and whose numbers against
            the elected sign are zero (AdaMerging++).
        density: Share of each task vector's numbers that "ties" keeps, in [0, 1].
        start: What all factors begin with.
        training: How to train, see `hf_zip.training.options`.
        refit: "head" fits the task heads anew, by least squares on the calibration inputs; "repair"
            restores mean and deviation of what every layer gives.
    """

    granularity: Granularity = "layer"
    vectors: Literal["plain", "ties"] = "plain"
    density: float = 0.2
    start: float = 0.3
    training: TrainingOptions = field(default=TrainingOptions())
    refit: SiblingRefit = "none"

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_between("density", self.density)
        check_recomputed("adamerging", self.training)


def run(inputs: MergeInputs, options: AdaMergingOptions) -> Merged:
    """Returns the base plus task vectors, each times a factor that makes predictions decided.

    The factors have the least entropy of each model's head, on the merged trunk, over unlabelled
    inputs; its sum over the models is what Adam lowers.

    Source: AdaMerging (https://arxiv.org/abs/2310.02575), section 3.2, and AdaMerging++ for
    `vectors: ties`. There the inputs are those of each task's test set; here they are calibration
    inputs, of each model's own where it has some. Factors may leave [0, 1].
    """
    from hf_zip.training.train import train  # whose transformers.Trainer takes seconds to import

    check_refit(inputs, options.refit)
    runtime = inputs.runtime
    kinds = deciding_kinds("adamerging", inputs)
    device = runtime.accelerator.device
    heads, trunks = split_heads(inputs, inputs.states)
    module = _coefficients(inputs, trunks, options).to(device)
    models = [model.to(device).eval() for model in runtime.models]
    sets, places = distinct_sets(runtime.feeds)

    def loss(factors: Coefficients, batch: Mapping[str, Any]) -> Tensor:
        own = [batch[str(place)] for place in places]
        return entropy_of_merge(models, factors.merged(), kinds, own)

    own = {name: getattr(options, name) for name in ("granularity", "vectors", "density")}
    trained = train(
        Learner(module, loss),
        SideBySide(sets),
        options.training,
        inputs.seed,
        identity=identity_of(inputs, options.training, own),
        description="factors",
        progress=runtime.progress,
    )
    with torch.no_grad():
        state = module.merged()
    trunk = {name: state[name].cpu().to(own.dtype) for name, own in trunks[0].items()}
    found = after_siblings(inputs, trunk, heads, options.refit)
    added = {"coefficients": module.by_layer(), "trainings": (trained,)}
    return replace(found, provenance={**found.provenance, **added})


def _coefficients(
    inputs: MergeInputs, trunks: Sequence[State], options: AdaMergingOptions
) -> Coefficients:
    """The factors at their start, with the task vectors on the device."""
    device, base = inputs.runtime.accelerator.device, inputs.base or {}
    parameters = {name for name, _ in inputs.runtime.models[0].named_parameters()}
    precise = {n: torch.promote_types(x.dtype, torch.float32) for n, x in trunks[0].items()}
    origin = {n: base[n].to(device, precise[n]) for n in trunks[0] if n in base and n in parameters}
    vectors = {
        name: torch.stack([trunk[name].to(device, own.dtype) - own for trunk in trunks])
        for name, own in origin.items()
    }
    if options.vectors == "ties":
        limits = thresholds(lambda: vectors.values(), [options.density] * len(trunks))
        vectors = {name: _of_elected_sign(trim(own, limits)) for name, own in vectors.items()}
    # What the base lacks has no task vector, and running statistics are no parameters.
    rest = [{n: x for n, x in trunk.items() if n not in origin} for trunk in trunks]
    fixed = {name: own.to(device) for name, own in mean(rest).items()}
    return Coefficients(origin, vectors, fixed, options.granularity, options.start)


def _of_elected_sign(vectors: Tensor) -> Tensor:
    return agreeing(vectors, torch.ones_like(vectors)) * vectors


ENTRY = MergeMethod(
    name="adamerging",
    title="AdaMerging: task vectors times factors that are learnt from unlabelled inputs",
    reference="https://arxiv.org/abs/2310.02575",
    requires=Requires(
        base=True, calibration=True, own_inputs=True, shared_init=True, elementwise=True
    ),
    run=run,
    options=AdaMergingOptions,
    exact=True,
)
