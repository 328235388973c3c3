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


def anchored_map(moment: Float[Tensor, "n n"], num_models: int, width: int) -> StreamMap:
    """Returns the map of `stream_map` with its basis and the means over features kept.

    Where gains and a bias stand in the stream, channels are no arbitrary basis. So the merged
    stream is rotated as near to the first model's channels as can be; one model keeps its own. And
    where the mean over features is read, that of the merged stream is the principal direction of
    the models' means.

    Args:
        moment: See `stream_map`, but for streams that are not centred.
        num_models: Number of models.
        width: Number of features of the merged stream, at least 2.

    Raises:
        HfZipError: See `stream_map`.

    Source: the orthogonal Procrustes problem (https://doi.org/10.1007/BF02289451).
    """
    moment = moment.double()
    size = len(moment) // num_models
    ones = torch.block_diag(*[moment.new_full((1, size), size**-0.5)] * num_models)
    centring = torch.eye(len(moment)).to(moment) - ones.T @ ones
    found = stream_map(centring @ moment @ centring, num_models, width)
    narrow, wide = centred_basis(width).to(moment), centred_basis(size).to(moment)
    first = narrow.T @ found.matrix[:, :size] @ wide
    wanted = narrow.T @ torch.eye(width, size).to(moment) @ wide
    left, _, right = torch.linalg.svd(wanted @ first.T)
    turn = narrow @ left @ right @ narrow.T
    # Scaled as the rest of their models is.
    scales = (centring @ moment @ centring).diagonal().reshape(num_models, size).mean(dim=1).rsqrt()
    means = scales[:, None] * ones
    share = torch.linalg.eigh(means @ moment @ means.T).eigenvectors[:, -1]
    share = share * torch.where(share.sum() < 0, -1.0, 1.0)
    constant = moment.new_full((width, 1), width**-0.5)
    matrix = turn @ found.matrix + constant * (share @ means)
    # Of the size of the models' streams: then what keeps divisions from zero weighs the same.
    return StreamMap(matrix / (num_models**0.5 * scales.mean()), found.explained)


def centred_basis(width: int) -> Float64[Tensor, "width directions"]:
    """Returns an orthonormal basis of all vectors whose entries sum to zero, as columns."""
    ones = torch.ones(width, 1, dtype=torch.float64)
    basis, _ = torch.linalg.qr(torch.cat([ones, torch.eye(width, dtype=torch.float64)], dim=1))
    return basis[:, 1:width]
