"""One sign per number, elected by all models, and the mean of those that agree with it."""

from jaxtyping import Float
from torch import Tensor


def elected_mean(
    vectors: Float[Tensor, " models *shape"],
    weights: Float[Tensor, "models ..."],
    votes: Float[Tensor, "models ..."] | None = None,
) -> Float[Tensor, " *shape"]:
    """Returns for each number the mean over the models that have the elected sign there.

    Elected is the sign of the weighted sum. Where the votes cancel there is none, and no mean.

    Args:
        vectors: Task vectors, trimmed; zeros take no part.
        weights: The weights of the models in the mean, zero or above.
        votes: Their weights in the election; left out, the same.

    Source: TIES-Merging (https://arxiv.org/abs/2306.01708), section 4, steps 2 and 3. The weights
    are 1 there; and where a sum is zero, the authors' code takes the sign that most numbers have.

    Example:
        >>> vectors = torch.tensor([[1.0, 2.0], [4.0, -3.0], [-2.0, 1.0]])
        >>> elected_mean(vectors, torch.ones(3, 1)).tolist()
        [2.5, 0.0]
    """
    agree = _agree(vectors, weights if votes is None else votes)
    total = (agree * weights).sum(dim=0)
    summed = agree.mul_(weights * vectors).sum(dim=0)
    return summed / (total + (1 - total.sign()))


def elected_sum(
    vectors: Float[Tensor, " models *shape"], weights: Float[Tensor, "models ..."]
) -> Float[Tensor, " *shape"]:
    """Returns for each number the weighted sum over the models that have the elected sign there.

    Args:
        vectors: See `elected_mean`, as for the weights.
        weights: The same.

    Example:
        >>> vectors = torch.tensor([[1.0, 2.0], [4.0, -3.0], [-2.0, 1.0]])
        >>> elected_sum(vectors, torch.tensor([[1.0], [0.5], [1.0]])).tolist()
        [3.0, 3.0]
    """
    return _agree(vectors, weights).mul_(weights * vectors).sum(dim=0)


def _agree(
    vectors: Float[Tensor, " models *shape"], votes: Float[Tensor, "models ..."]
) -> Float[Tensor, " models *shape"]:
    """One where a number has the elected sign, else zero: masks are many times slower."""
    return (vectors.sign() * (votes * vectors).sum(dim=0).sign()).clamp_(min=0)
