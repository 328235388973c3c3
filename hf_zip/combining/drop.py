"""Numbers dropped at random, the same ones whatever the order of tensors or processes."""

import hashlib

import torch
from jaxtyping import Float
from torch import Tensor


def drop(
    vectors: Float[Tensor, " models *shape"],
    rates: Float[Tensor, "models ..."],
    seed: int,
    name: str,
    rescale: bool = True,
) -> Float[Tensor, " models *shape"]:
    """Returns tensors with numbers set to zero at random, each with its own probability.

    Every model draws from a stream of random numbers that only the seed, the name and the model's
    position decide. They are drawn on the CPU, so that all devices see the same.

    Args:
        vectors: One tensor of each model.
        rates: The probability of each number to be dropped, in [0, 1].
        seed: The merge's seed.
        name: The parameter's name.
        rescale: Divide what is left by its probability to stay, which keeps the expected value.

    Source: DARE (https://arxiv.org/abs/2311.03099), section 3.2, where one rate is for all.
    """
    drawn = torch.stack(
        [
            torch.rand(vectors.shape[1:], generator=_generator(seed, name, model))
            for model in range(len(vectors))
        ]
    ).to(vectors.device)
    kept = torch.where(drawn >= rates, vectors, 0)
    return kept / torch.where(rates < 1, 1 - rates, 1) if rescale else kept


def _generator(seed: int, name: str, model: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{model}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
