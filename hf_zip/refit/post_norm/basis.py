"""What the merged stream should hold: the teachers' normalised streams, mapped to one."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_zip.errors import HfZipError
from hf_zip.refit.shape import REDUNDANT
from hf_zip.refit.stream import stream_map

# Of a model's median gain: a feature with less hardly passes, and divided by it would be all noise.
SMALLEST_GAIN = 0.05


@dataclass(frozen=True)
class Plain:
    """Takes gains and biases out of the teachers' streams after one of their normalisations.

    Args:
        gain: Absolute gains of all teachers, side by side.
        bias: Their biases.
    """

    gain: Float[Tensor, " n"]
    bias: Float[Tensor, " n"]

    def __call__(self, streams: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
        """Returns the streams of all teachers, side by side, in units of the gains."""
        return (streams - self.bias) / self.gain


def plain_norm(teachers: Sequence[PreTrainedModel], name: str) -> Plain:
    """Returns what takes a normalisation's gains and biases out of all teachers' streams.

    Args:
        teachers: The models.
        name: The normalisation.

    Raises:
        HfZipError: It is no LayerNorm.
    """
    gains: list[Tensor] = []
    biases: list[Tensor] = []
    for teacher in teachers:
        norm = teacher.get_submodule(name)
        if not isinstance(norm, nn.LayerNorm):
            raise HfZipError(
                f"{name} is a {type(norm).__name__}, but only models with LayerNorm can be refitted"
            )
        gain = norm.weight.abs()
        gains.append(gain.clamp(min=SMALLEST_GAIN * float(gain.median())))
        biases.append(norm.bias)
    return Plain(torch.cat(gains), torch.cat(biases))


@dataclass(frozen=True)
class Basis:
    """The features of the merged stream.

    Args:
        matrix: Maps the teachers' streams, side by side, to the merged one.
        plains: What to do to the streams before, by name of the normalisation behind them.
        own: Whether the merged stream is that of the first teacher, gains and biases included.
        explained: Share of the energy of all plain streams that the merged stream can hold.
    """

    matrix: Float[Tensor, "width n"]
    plains: dict[str, Plain]
    own: bool
    explained: float

    def target(self, streams: Float[Tensor, "rows n"], norm: str) -> Float[Tensor, "rows width"]:
        """Returns what the merged stream should be after a normalisation."""
        return self.plains[norm](streams) @ self.matrix.T


def choose_basis(
    moment: Float64[Tensor, "n n"], plains: dict[str, Plain], num_models: int, width: int
) -> Basis:
    """Returns the first teacher's own features if they hold all streams, or else a zip.

    Gains and biases are part of a post-norm stream, so a model can only be given back as it was in
    its own features. Where the other streams say nothing else, as in copies of one model, nothing
    is lost by keeping these; otherwise the merged features are the principal directions of all
    plain streams, whose norm is the same at all tokens and layers.

    Args:
        moment: Mean of `z zᵀ` of all teachers' plain streams, side by side.
        plains: What makes them plain, by name of the normalisation.
        num_models: Number of teachers.
        width: Features of the merged stream.
    """
    size = len(moment) // num_models
    sample = next(iter(plains.values())).gain
    if width == size and _left(moment, size) < REDUNDANT:
        same = {
            name: Plain(torch.ones_like(plain.gain), torch.zeros_like(plain.bias))
            for name, plain in plains.items()
        }
        return Basis(torch.eye(size, len(moment)).to(sample), same, True, 1.0)
    stream = stream_map(moment, num_models, width)
    return Basis(stream.matrix.to(sample), plains, False, stream.explained)


def _left(moment: Tensor, size: int) -> float:
    """Share of the energy of the other streams that a linear map from the first leaves."""
    own, cross, others = moment[:size, :size], moment[size:, :size], moment[size:, size:]
    if not len(others):
        return 0.0
    explained = cross @ torch.linalg.pinv(own, hermitian=True, rtol=1e-9) @ cross.T
    return float(1 - explained.diagonal().sum() / others.diagonal().sum())
