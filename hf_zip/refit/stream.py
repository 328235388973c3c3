"""One stream for several models: the directions in which their residual streams vary most."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hf_zip.errors import HfZipError


@dataclass(frozen=True)
class StreamMap:
    """The linear map from the streams of all models, side by side, to the merged one.

    Args:
        matrix: The map; its outputs sum to zero over the features, as LayerNorm ignores their mean.
        explained: Share of the streams' energy that the merged stream keeps, in [0, 1].
    """

    matrix: Float64[Tensor, "width n"]
    explained: float


def stream_map(moment: Float[Tensor, "n n"], num_models: int, width: int) -> StreamMap:
    """Returns the map onto the top principal directions of the concatenated streams.

    Every model's stream is scaled to unit mean square first, so that none dominates.

    Args:
        moment: Mean of `x xᵀ` over inputs, tokens and positions of the stream, `x` the centred
            streams of all models side by side.
        num_models: Number of models.
        width: Number of features of the merged stream, at least 2.

    Raises:
        HfZipError: The width is below 2, or a model's stream is zero.

    Source: principal components of the concatenated streams; the complement of the ones vector is
    the space in which LayerNorm commutes with rotations (SliceGPT, https://arxiv.org/abs/2401.15024).
    """
    if width < 2:
        raise HfZipError(f"the merged stream has width {width}; it should be at least 2")
    moment = moment.double()
    size = len(moment) // num_models
    energies = moment.diagonal().reshape(num_models, size).mean(dim=1)
    if not (energies > 0).all():
        raise HfZipError(
            "the residual stream of a model is zero on the calibration inputs; check its weights"
        )
    scales = energies.rsqrt().repeat_interleave(size)
    values, vectors = torch.linalg.eigh(moment * torch.outer(scales, scales))
    top = vectors[:, -(width - 1) :]
    if top.shape[1] < width - 1:  # more directions than there are: the rest stays empty
        top = torch.cat([top, top.new_zeros(len(top), width - 1 - top.shape[1])], dim=1)
    kept = values.clamp(min=0)[-(width - 1) :].sum() / values.clamp(min=0).sum()
    return StreamMap(centred_basis(width).to(top) @ (top * scales[:, None]).T, float(kept))


def centred_basis(width: int) -> Float64[Tensor, "width directions"]:
    """Returns an orthonormal basis of all vectors whose entries sum to zero, as columns."""
    ones = torch.ones(width, 1, dtype=torch.float64)
    basis, _ = torch.linalg.qr(torch.cat([ones, torch.eye(width, dtype=torch.float64)], dim=1))
    return basis[:, 1:width]
