"""Linear systems of matrices solved by conjugate gradients, never written out as one matrix."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

Map = Callable[[Float[Tensor, "m n"]], Float[Tensor, "m n"]]


@dataclass(frozen=True)
class Solved:
    """A solution, and how well it solves.

    Args:
        solution: The matrix.
        iterations: How many steps were taken.
        residual: Norm of what is left, as a share of that at the start.
    """

    solution: Float64[Tensor, "m n"]
    iterations: int
    residual: float


def conjugate_gradients(
    apply: Map,
    right: Float64[Tensor, "m n"],
    start: Float64[Tensor, "m n"],
    iterations: int = 100,
    tolerance: float = 1e-10,
    quick: Map | None = None,
    kept: int = 100,
) -> Solved:
    """Returns what solves `apply(X) = right`, or comes near to it.

    In exact numbers what is left after a step is orthogonal to what was left after every other.
    Rounding ends that soon where the map nearly loses some directions, and steps are spent twice on
    the same ones, other steps for every rounding. So each is made orthogonal to those before it,
    kept in float32, and many steps are those of exact numbers even where products are rounded.

    Args:
        apply: A linear map of matrices in float64, symmetric and with no negative eigenvalues.
        right: The right side.
        start: Where to start. What the map takes to zero stays as it is there.
        iterations: Steps at most.
        tolerance: Stop once what is left has so small a share of its norm at the start.
        quick: The same map in float32, which steps are made with; what is left is checked with
            `apply`. Nothing for the map itself.
        kept: After how many steps, the first ones, what was left is kept to be orthogonal to.

    Source: Hestenes and Stiefel (1952), https://doi.org/10.6028/jres.049.044.
    """
    solution = start.clone()
    left = right - apply(solution)
    first, steps = left.norm(), 0
    while steps < iterations and bool(left.norm() > tolerance * first):
        goal = float(tolerance * first / left.norm())
        change, taken = _steps(quick or apply, left, iterations - steps, goal, kept)
        after = right - apply(solution + change)
        # Nothing but rounding is left, or too few steps were to go.
        if not taken or (steps and after.norm() >= left.norm()):
            break
        solution, left, steps = solution + change, after, steps + taken
    share = float(left.norm() / first) if first > 0 else 0.0
    return Solved(solution, steps, share)


def _steps(
    apply: Map, right: Float64[Tensor, "m n"], most: int, goal: float, kept: int
) -> tuple[Float64[Tensor, "m n"], int]:
    """Returns where conjugate gradients come to from zero, and after how many steps."""
    norm = right.norm()  # of length one, so that float32 holds all products
    left = right / norm
    direction, solution, energy = left.clone(), torch.zeros_like(left), left.square().sum()
    past = left.new_empty((min(kept, most, left.numel()), left.numel()), dtype=torch.float32)
    taken = 0
    while taken < most and bool(energy > goal**2):
        if taken < len(past):
            past[taken] = (left / energy.sqrt()).flatten()
        applied = apply(direction).to(left)
        curvature = (direction * applied).sum()
        if not curvature > 0:  # nothing but rounding is left
            break
        step = energy / curvature
        solution += step * direction
        left -= step * applied
        taken += 1
        before = past[:taken]
        left -= (before.T @ (before @ left.flatten().to(before))).view_as(left)
        last, energy = energy, left.square().sum()
        direction = left + energy / last * direction
    return norm * solution, taken


def kronecker_sum(lefts: Float[Tensor, "models m m"], rights: Float[Tensor, "models n n"]) -> Map:
    """Returns the map X → Σ_k B_k X A_k, in the precision of these.

    Args:
        lefts: The B_k.
        rights: The A_k.
    """

    def apply(x: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
        x = x.to(lefts)
        found = torch.zeros_like(x)
        for left, right in zip(lefts, rights, strict=True):
            found.addmm_(left, x @ right)
        return found

    return apply
