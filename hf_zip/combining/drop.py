"""Numbers dropped at random, the same ones whatever the order of tensors or processes."""

import hashlib

import numpy as np
import torch
from jaxtyping import Float
from numpy.random import SFC64
from torch import Tensor

_BLOCK = 1 << 16  # numbers that are drawn in a row


def drop(
    vectors: Float[Tensor, " models *shape"],
    rates: Float[Tensor, "models ..."],
    seed: int,
    name: str,
    rescale: bool = True,
    start: int = 0,
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
        start: How many of the parameter's numbers come before these.

    Source: DARE (https://arxiv.org/abs/2311.03099), section 3.2, where one rate is for all.
    """
    drawn = torch.stack(
        [
            _uniform(start, vectors[0].numel(), seed, name, model).reshape(vectors.shape[1:])
            for model in range(len(vectors))
        ]
    ).to(vectors.device)
    # Ones from the rate on, zeros below: masks are many times slower to work with.
    kept = vectors * (drawn - rates).sign_().add_(1).clamp_(max=1)
    return kept / torch.where(rates < 1, 1 - rates, 1) if rescale else kept


def ranked_rates(
    vectors: Float[Tensor, " models *shape"],
    rates: Float[Tensor, "models ..."],
    window: float,
) -> Float[Tensor, " models *shape"]:
    """Returns probabilities to drop numbers, the lower the larger they are among those of a row.

    Of n numbers that of rank r, from 0 for the largest, has `rate - window / 2 + window * r / n`.
    A row is what belongs to one output; what has one dimension is one row.

    Args:
        vectors: One tensor of each model.
        rates: The rate of each model.
        window: How far apart the rates of a row lie.

    Source: DELLA-Merging (https://arxiv.org/abs/2406.11617), MagPrune.
    """
    rows = vectors.flatten(2) if vectors.dim() > 2 else vectors
    if rows.dim() == 1:
        rows = rows[:, None]
    order = rows.abs().argsort(dim=-1, descending=True, stable=True)
    ranks = torch.zeros_like(rows).scatter_(
        -1, order, torch.arange(rows.shape[-1]).to(rows).expand_as(rows)
    )
    return rates - window / 2 + window * ranks.reshape(vectors.shape) / rows.shape[-1]


def _uniform(start: int, count: int, seed: int, name: str, model: int) -> Float[Tensor, " count"]:
    """Some of a parameter's random numbers: every block of them is a stream of its own."""
    drawn = []
    position, end = start, start + count
    while position < end:
        block, skipped = divmod(position, _BLOCK)
        wanted = min(_BLOCK, end - block * _BLOCK)
        digest = hashlib.sha256(f"{seed}/{model}/{name}/{block}".encode()).digest()
        # Two of 32 bits each; the bits of a generator are the same in all versions of numpy.
        bits = SFC64(int.from_bytes(digest[:8], "big")).random_raw((wanted + 1) // 2)
        drawn.append(torch.from_numpy(bits.view(np.int32)[skipped:wanted]))
        position = (block + 1) * _BLOCK
    joined = torch.cat(drawn) if drawn else torch.empty(0, dtype=torch.int32)
    return (joined & 0xFFFFFF).float().mul_(2**-24)
