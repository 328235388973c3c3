"""MaTS: linear layers that match each model where that model's answers depend on them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hf_zip.align import State, mean, shares
from hf_zip.aligned import check_refit, split_heads
from hf_zip.combining.conjugate import conjugate_gradients, kronecker_sum
from hf_zip.errors import HfZipError
from hf_zip.method import MergeInputs, MergeMethod, Requires, WeightOptions
from hf_zip.outcome import Merged
from hf_zip.ranges import check_between
from hf_zip.siblings import SiblingRefit, after_siblings
from hf_zip.weighing.curvature import Curvature, curvatures
from hf_zip.weighing.draws import check_likelihood
from hf_zip.weighing.feed import Run
from hf_zip.weighing.fisher import names_in_trunk
from hf_zip.weighing.layers import GIB, in_passes, linear_layers, readers
from hf_zip.weighing.regmean import check_shares, note_others


@dataclass(frozen=True)
class MatsOptions:
    """How linear layers are matched, and what follows.

    Args:
        iterations: Steps of conjugate gradients at most, for every layer.
        start: Where they start, and what all other parameters become: "task_arithmetic" is the base
            plus `scaling` times the sum of task vectors, "average" their weighted mean.
        scaling: Factor of the sum of task vectors at the start, the paper's λ.
        memory: What the curvatures may take, in GiB. If those of all layers of all models take
            more, layers are merged some at a time, and the models run again for each part. As much
            again may be taken by the steps of one layer that later ones are made orthogonal to.
        refit: "head" fits the task heads anew, by least squares on the calibration inputs; "repair"
            restores mean and deviation of what every layer gives.
    """

    iterations: int = 100
    start: Literal["task_arithmetic", "average"] = "task_arithmetic"
    scaling: float = 0.3
    memory: float = 4.0
    refit: SiblingRefit = "none"

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.iterations < 0:
            raise HfZipError(f"iterations is {self.iterations}; it should be at least 0")
        check_between("memory", self.memory, 0, float("inf"))


def run(inputs: MergeInputs, options: MatsOptions) -> Merged:
    """Returns the matrices X of linear layers with Σ λ_k B_k X A_k = Σ λ_k B_k W_k A_k.

    A_k is the second moment of what goes into the layer of model k, B_k that of the gradients of
    its log-likelihood by what comes out, for labels drawn from its answers: block by block, A_k ⊗
    B_k is near its Fisher information. λ_k is its weight. The system is solved by conjugate
    gradients, from the start that the options name and never written out; what no model's answers
    depend on stays there. Products are made in float32, what they leave is checked in float64, and
    rounding does not grow from step to step.

    Source: Merging by Matching Models in Task Parameter Subspaces
    (https://arxiv.org/abs/2312.04339), section 4, with K-FAC blocks. Deviations: everything but the
    matrices of linear layers, heads aside, stays at the start.
    """
    check_refit(inputs, options.refit)
    check_shares("mats", inputs.weights)
    for whole in inputs.runtime.whole or inputs.runtime.models:
        check_likelihood("mats", whole)
    heads, trunks = split_heads(inputs, inputs.states)
    trunk = _start(inputs, trunks, options)
    for name, matrix in _matched(inputs, trunks, dict(trunk), options):
        trunk[name] = matrix.to(trunk[name])
    return after_siblings(inputs, trunk, heads, options.refit, inputs.weights)


def _start(inputs: MergeInputs, trunks: Sequence[State], options: MatsOptions) -> dict[str, Tensor]:
    trunk, base = mean(trunks, inputs.weights), inputs.base or {}
    if options.start == "average":
        return trunk
    for name, origin in base.items():
        if name in trunk:
            own = [state[name].double() - origin.double() for state in trunks]
            vectors = [weight * x for weight, x in zip(inputs.weights, own, strict=True)]
            summed = torch.stack(vectors).sum(dim=0)
            trunk[name] = (origin.double() + options.scaling * summed).to(trunk[name])
    return trunk


def _matched(
    inputs: MergeInputs, trunks: Sequence[State], start: State, options: MatsOptions
) -> Iterator[tuple[str, Tensor]]:
    runtime = inputs.runtime
    running, device = Run(runtime.accelerator, runtime.progress), runtime.accelerator.device
    models, wholes = runtime.models, runtime.whole or runtime.models
    layers = linear_layers(models[0], start.keys())
    same = readers(models[0].to(device).eval(), layers, runtime.feeds[0].one(runtime.accelerator))
    models[0].cpu()
    note_others(layers, same)
    parts = shares(len(models), inputs.weights)
    for some in in_passes(_costs(same, start, len(models)), options.memory):
        of = {layer: first for layer, first in same.items() if first in some}
        found = []
        for position, (model, whole) in enumerate(zip(models, wholes, strict=True)):
            full = _full_names(names_in_trunk(whole, model), of)
            title = f"curvature of model {position + 1} of {len(models)}"
            whole.to(device).eval()
            seeds = (inputs.seed, position)
            own = curvatures(
                whole,
                {full[layer]: full[first] for layer, first in of.items()},
                runtime.feeds[position],
                seeds,
                running,
                title,
            )
            whole.cpu()
            found.append({layer: own[full[layer]] for layer in of})
        for layer in running.bar(of, "matching layers"):
            name = f"{layer}.weight"
            yield (
                name,
                _solved(
                    [state[name] for state in trunks],
                    start[name],
                    [own[layer] for own in found],
                    parts,
                    options,
                ),
            )


def _solved(
    own: Sequence[Tensor],
    start: Tensor,
    found: Sequence[Curvature],
    parts: Sequence[float],
    options: MatsOptions,
) -> Tensor:
    lefts = _scaled(torch.stack([part * c.outputs for part, c in zip(parts, found, strict=True)]))
    rights = _scaled(torch.stack([c.inputs for c in found]))
    right = torch.zeros_like(start, dtype=lefts.dtype, device=lefts.device)
    for b, w, a in zip(lefts, own, rights, strict=True):
        right.addmm_(b, w.to(b) @ a)
    solved = conjugate_gradients(
        kronecker_sum(lefts, rights),
        right,
        start.to(lefts),
        options.iterations,
        quick=kronecker_sum(lefts.float(), rights.float()),
        kept=int(options.memory * GIB) // (4 * start.numel()),
    )
    return solved.solution.cpu()


def _scaled(factors: Tensor) -> Tensor:
    """The factors of a system over one number, which its solution does not depend on.

    Squares of gradients may be too small for float32.
    """
    largest = factors.abs().max()
    return factors / largest if largest > 0 else factors


def _costs(same: Mapping[str, str], start: State, count: int) -> dict[str, int]:
    """Bytes of the curvatures of all models, by the first of the layers that read the same."""
    costs = dict.fromkeys(same.values(), 0)
    for layer, first in same.items():
        high, wide = start[f"{layer}.weight"].shape
        costs[first] += 8 * count * (high**2 + wide**2 * (layer == first))
    return costs


def _full_names(names: Mapping[str, str], layers: Mapping[str, str]) -> dict[str, str]:
    return {layer: names[f"{layer}.weight"].removesuffix(".weight") for layer in layers}


ENTRY = MergeMethod(
    name="mats",
    title="MaTS: linear layers that match each model where its answers depend on them",
    reference="https://arxiv.org/abs/2312.04339",
    requires=Requires(
        base=True, calibration=True, own_inputs=True, shared_init=True, elementwise=True
    ),
    run=run,
    options=MatsOptions,
    model_options=WeightOptions,
    exact=True,
)
