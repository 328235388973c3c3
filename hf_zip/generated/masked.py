"""Tokens that a masked language model draws: masked and drawn again, sweep by sweep."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Args:
        sweeps: How often every position is drawn.
        steps: Parts of a sweep, each with its share of the positions, which are masked and then
            drawn together.
        temperature: What logits are divided by.
        top_k: How many tokens, the likeliest ones, one is drawn from.
    """

    sweeps: int = 4
    steps: int = 8
    temperature: float = 1.0
    top_k: int = 100


@torch.no_grad()
def draw_tokens(
    predict: Predict,
    ids: Int[Tensor, "texts tokens"],
    free: Bool[Tensor, "texts tokens"],
    mask: int,
    barred: Bool[Tensor, " words"],
    randoms: Sequence[np.random.Generator],
    sampling: Sampling,
) -> Int[Tensor, "texts tokens"]:
    """Returns texts whose free positions are drawn from what a model predicts there.

    All free positions begin as masks. Each sweep takes them in an order of its own, a part at a
    time.

    Source: BERT has a Mouth, and It Must Speak (https://arxiv.org/abs/1902.04094). There each step
    draws one position, picked anew; here a sweep draws every position once, and several at a time
    in texts of more positions than steps.

    Args:
        predict: From ids to logits, `[texts, tokens, words]`.
        ids: The texts, special tokens and padding included.
        free: Which positions are drawn.
        mask: Id of the mask token.
        barred: Tokens that are never drawn.
        randoms: What draws each text; so no text changes what another becomes.
        sampling: How to draw.
    """
    ids = ids.masked_fill(free, mask)
    places = [own.nonzero().squeeze(1).cpu().numpy() for own in free]
    for _ in range(sampling.sweeps):
        orders = [
            np.array_split(random.permutation(own), sampling.steps)
            for own, random in zip(places, randoms, strict=True)
        ]
        for step in range(sampling.steps):
            parts = [order[step] for order in orders]
            rows = torch.arange(len(parts)).repeat_interleave(torch.tensor([*map(len, parts)]))
            if not len(rows):
                continue
            columns = torch.from_numpy(np.concatenate(parts))
            levels = [random.random(len(own)) for own, random in zip(parts, randoms, strict=True)]
            ids[rows, columns] = mask
            logits = predict(ids)[rows, columns].masked_fill(barred, -torch.inf)
            drawn = _drawn(logits, torch.from_numpy(np.concatenate(levels)), sampling)
            ids[rows, columns] = drawn.to(ids)
    return ids


def _drawn(
    logits: Float[Tensor, "places words"], levels: Float[Tensor, " places"], sampling: Sampling
) -> Int[Tensor, " places"]:
    """The token of each place at a level, in [0, 1), of what the likeliest ones sum up to."""
    known = int((logits[0] > -torch.inf).sum())
    found = logits.topk(min(sampling.top_k, known), dim=1)
    values = found.values.cpu().double()  # of which not every device knows
    sums = (values / sampling.temperature).softmax(dim=1).cumsum(dim=1)
    # Rounding may leave the last sum below 1, and so below a level.
    position = torch.searchsorted(sums, levels.unsqueeze(1), right=True)
    return found.indices.cpu().gather(1, position.clamp(max=sums.shape[1] - 1)).squeeze(1)
