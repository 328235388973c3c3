"""Means of directions: tensors as points of a sphere, and the arcs between them."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

_SMALLEST = 1e-7  # angles, in radians, below which an arc is a straight line


def slerp(
    first: Float[Tensor, " *shape"], second: Float[Tensor, " *shape"], t: float, angle: float
) -> Float[Tensor, " *shape"]:
    """Returns the point at a share of the way along the arc between two tensors.

    Their norms are interpolated with them. Where they have the same or opposite directions, or one
    is zero, the way is a straight line.

    Args:
        first: The one tensor, at t = 0.
        second: The other, at t = 1.
        t: Share of the way.
        angle: The angle between the wholes that these are, or are rows of.

    Source: Shoemake, Animating Rotation with Quaternion Curves (1985,
    https://doi.org/10.1145/325165.325242), section 3.3. The angle is that between whole tensors.
    """
    if angle < _SMALLEST or math.pi - angle < _SMALLEST:
        return (1 - t) * first + t * second
    weights = [math.sin((1 - t) * angle), math.sin(t * angle)]
    return (weights[0] * first + weights[1] * second) / math.sin(angle)


def angle_between(passes: Callable[[], Iterable[Float[Tensor, "two ..."]]]) -> float:
    """Returns the angle between two tensors, exact for small ones too; 0 where one is zero.

    Args:
        passes: Starts a pass over the parts of both.
    """

    def rows() -> Iterator[Float64[Tensor, "two n"]]:
        for part in passes():
            yield part.reshape(2, -1).to(torch.float64, copy=True)  # to be worked on in place

    squares = torch.zeros(2, dtype=torch.float64)
    for pair in rows():
        squares += pair.square_().sum(dim=1).cpu()
    norms = squares.sqrt()
    if not norms.all():
        return 0.0
    apart = together = 0.0
    for pair in rows():
        first, second = pair.div_(norms.to(pair.device)[:, None])
        apart += float((first - second).square_().sum())
        together += float(first.add_(second).square_().sum())
    return 2 * math.atan2(math.sqrt(apart), math.sqrt(together))


def karcher_mean(
    tensors: Float[Tensor, " models *shape"],
    weights: Sequence[float],
    max_iterations: int,
    tolerance: float,
) -> Float[Tensor, " *shape"]:
    """Returns the mean direction of tensors, times the mean of their norms.

    The mean direction has the least weighted sum of squared angles to all of them. It is found from
    the normalised mean by steps along the mean of the arcs. Tensors of zeros have no direction, and
    where the others' cancel there is no mean one; then it is the plain mean.

    Args:
        tensors: One tensor of each model.
        weights: Share of each model; their sum is 1.
        max_iterations: Steps at most.
        tolerance: Length of a step, in radians, that is small enough to stop at.

    Source: Karcher, Riemannian Center of Mass and Mollifier Smoothing (1977,
    https://doi.org/10.1002/cpa.3160300502), on a sphere.
    """
    shares = tensors.new_tensor(weights, dtype=torch.float64)
    points, norms = _directions(tensors)
    alive = norms > 0
    points, own = points[alive], shares[alive]
    mean = own @ points
    if mean.norm() < _SMALLEST:
        return torch.tensordot(shares, tensors.double(), 1).to(tensors)
    mean, own = mean / mean.norm(), own / own.sum()
    for _ in range(max_iterations):
        step = own @ torch.stack([_arc(mean, point) for point in points])
        length = float(step.norm())
        if length > 0:
            mean = math.cos(length) * mean + math.sin(length) * step / length
            mean = mean / mean.norm()
        if length <= tolerance:
            break
    return (mean * (shares @ norms)).reshape(tensors.shape[1:]).to(tensors)


def _directions(
    tensors: Float[Tensor, " models *shape"],
) -> tuple[Float[Tensor, "models n"], Float[Tensor, " models"]]:
    """Tensors as rows of norm 1, or 0 where they are zero, in float64; and their norms."""
    rows = tensors.reshape(len(tensors), -1).double()
    norms = rows.norm(dim=1)
    return rows / torch.where(norms > 0, norms, 1)[:, None], norms


def _angle(first: Float[Tensor, " n"], second: Float[Tensor, " n"]) -> float:
    """The angle between two directions, exact for small ones too; 0 where one is zero."""
    if not (first.any() and second.any()):
        return 0.0
    return 2 * math.atan2(float((first - second).norm()), float((first + second).norm()))


def _arc(start: Float[Tensor, " n"], end: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The arc from one direction to another: tangent at its start, as long as the angle."""
    across = end - (start @ end) * start
    length = across.norm()
    return across * (_angle(start, end) / length) if length > 0 else across
