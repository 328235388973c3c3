"""How the merged stream carries the teachers' streams past the residual connections."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from hf_zip.refit.moments import Moments
from hf_zip.refit.post_norm.work import PostNormWork


@dataclass(frozen=True)
class Carry:
    """Maps what the teachers write to a stream to what the merged model should write.

    Args:
        weight: The map.
        bias: What is to be added.
    """

    weight: Float[Tensor, "width n"]
    bias: Float[Tensor, " width"]

    def __call__(self, written: Float[Tensor, "rows n"]) -> Float[Tensor, "rows width"]:
        """Returns what the merged model should write where the teachers write this."""
        return written @ self.weight.T + self.bias


def fit_carry(work: PostNormWork, moments: Moments, norm: str) -> Carry:
    """Returns how the merged stream after a normalisation depends on the teachers' streams.

    Args:
        work: The models.
        moments: Moments of the teachers' plain streams and of the merged one.
        norm: The normalisation.
    """
    plain = work.basis.plains[norm]
    if work.basis.own:
        weight, offset = work.matrix, moments.mean_y.new_zeros(work.shape.width)
    else:
        weight, offset = (part.to(work.matrix) for part in moments.fit(work.penalty))
    weight = weight / plain.gain
    # Teachers normalise their stream with its bias in it, so the merged one should have it too.
    return Carry(weight, (weight @ plain.bias).to(weight) - offset.to(weight))
