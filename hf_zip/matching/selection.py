"""Which features, or heads, say most about all others: choices without redundancy."""

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.linalg import lapack
from torch import Tensor

from hf_zip.errors import HfZipError


def select_features(gram: Float[Tensor, "n n"], count: int) -> Int64[Tensor, " count"]:
    """Returns the features that leave least of the others unexplained, chosen one after another.

    Each is the one with the largest residual after a linear fit on those before it (Cholesky with
    diagonal pivoting), so a copy of a chosen feature is never chosen while another has something
    new to say.

    Args:
        gram: Second moments of the features, symmetric positive semi-definite.
        count: How many to choose, from 1 to n.

    Raises:
        HfZipError: The count is out of range or the moments are not finite.

    Source: Higham, Accuracy and Stability of Numerical Algorithms, section 10.3 (LAPACK's pstrf).
    """
    _check(gram, count, len(gram), "features")
    # A negative tolerance would be LAPACK's default; zero keeps pivoting through what is left.
    # Transposed it is laid out as LAPACK wants it, which saves a copy of a large matrix.
    _, pivots, _, info = lapack.dpstrf(gram.double().cpu().numpy().T, tol=0.0)
    if info < 0:
        raise HfZipError(f"the pivoted Cholesky factorisation failed (info {info})")
    return torch.from_numpy(np.asarray(pivots[:count], dtype=np.int64) - 1)


def select_heads(
    gram: Float[Tensor, "n n"], num_heads: int, count: int
) -> tuple[Int64[Tensor, " count"], float]:
    """Returns the heads that leave least of the others unexplained, and how much that is.

    Args:
        gram: Second moments of the features of all heads, head by head.
        num_heads: Number of heads among them.
        count: How many to choose, from 1 to `num_heads`.

    Returns:
        The chosen heads in order of choice, and the share of the energy of all features that a
        linear fit on them leaves unexplained, in [0, 1].

    Raises:
        HfZipError: The count is out of range, the moments are not finite, or they do not divide
            into heads.
    """
    _check(gram, count, num_heads, "heads")
    if len(gram) % num_heads:
        raise HfZipError(f"{len(gram)} features do not divide into {num_heads} heads")
    width = len(gram) // num_heads
    residual = gram.double().clone()
    energy = residual.diagonal().sum()
    chosen: list[int] = []
    for _ in range(count):
        gains = [
            -torch.inf
            if head in chosen
            else float(_explained(residual, slice(head * width, (head + 1) * width)))
            for head in range(num_heads)
        ]
        best = int(np.argmax(gains))
        chosen.append(best)
        own = slice(best * width, (best + 1) * width)
        residual -= residual[:, own] @ _pseudo_inverse(residual[own, own]) @ residual[own, :]
    left = (residual.diagonal().sum() / energy).clamp(0, 1) if energy > 0 else torch.tensor(0.0)
    return torch.tensor(chosen), float(left)


def _explained(residual: Tensor, own: slice) -> Tensor:
    """How much of all energy a linear fit on one head's features explains."""
    columns = residual[:, own]
    return (columns @ _pseudo_inverse(residual[own, own])).mul(columns).sum()


def _pseudo_inverse(block: Tensor) -> Tensor:
    # What is left of a feature after a perfect fit is rounding; its inverse would be noise.
    return torch.linalg.pinv(block, hermitian=True, rtol=1e-9)


def _check(gram: Tensor, count: int, available: int, what: str) -> None:
    if not 1 <= count <= available:
        raise HfZipError(f"{count} of {available} {what} are asked for; it should be 1 to all")
    if not torch.isfinite(gram).all():
        raise HfZipError(f"the moments of the {what} are not finite; check the activations")
