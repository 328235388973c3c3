"""Images that a loss shapes: their pixels, changed by gradients."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Inversion:
    """How images are changed.

    Args:
        steps: Steps of Adam.
        learning_rate: What the first step changes a pixel by, where 1 is the way from black to
            white; it falls to nought as half a cosine.
        shift: How far an image is moved before a step at most, in shorter sides; what leaves it on
            one side comes back on the other.
    """

    steps: int = 80
    learning_rate: float = 0.025
    shift: float = 0.125


@torch.enable_grad()  # whoever merges may have switched gradients off
def invert(
    loss: Loss,
    images: Float[Tensor, "images channels height width"],
    random: np.random.Generator,
    inversion: Inversion,
) -> Float[Tensor, "images channels height width"]:
    """Returns images that were changed until a loss is low, wherever they are moved.

    Before each step all images are moved by the same few pixels, and mirrored or not, so that the
    places of patches and strides do not show in them.

    Args:
        loss: The loss of each image.
        images: What they begin as, from 0 to 1, and so are they in the end.
        random: Decides how they are moved.
        inversion: How to change them.

    Source: DeepInversion (https://arxiv.org/abs/1912.08795), section 3.1, without its priors of
    pixels, and with images to begin with in the place of noise.
    """
    found = images.detach().clone().requires_grad_()
    optimiser = torch.optim.Adam([found], lr=inversion.learning_rate)
    most = math.floor(inversion.shift * min(images.shape[2:]))
    for step in range(inversion.steps):
        left = (1 + math.cos(math.pi * step / inversion.steps)) / 2
        optimiser.param_groups[0]["lr"] = inversion.learning_rate * left
        moves = random.integers(-most, most + 1, 2).tolist()
        moved = found.roll(moves, dims=(2, 3))
        if random.random() < 0.5:
            moved = moved.flip(3)
        (found.grad,) = torch.autograd.grad(loss(moved).sum(), [found])
        optimiser.step()
        with torch.no_grad():
            found.clamp_(0, 1)
    return found.detach()
