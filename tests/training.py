"""A small training for tests: a linear layer that learns a linear map."""

import torch
from torch import nn

from hf_zip.training.learner import Learner


def pairs(count=40, seed=1):
    """Inputs and what a linear map makes of them, but for noise."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 5, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    y = x @ torch.randn(5, 3, generator=generator, dtype=torch.float64) + 0.5 * noise
    return [{"x": a, "y": b} for a, b in zip(x, y, strict=True)]


def squared_error(module, batch):
    """The loss of every input."""
    return (module(batch["x"]) - batch["y"]).square().sum(dim=-1)


def linear(loss=squared_error):
    """A learner of the map."""
    torch.manual_seed(3)
    return Learner(nn.Linear(5, 3).double(), loss)


class Ticking:
    """A clock that goes on by so many seconds whenever it is looked at."""

    def __init__(self, monkeypatch, tick):
        self.now, self.tick = 0.0, tick
        monkeypatch.setattr("hf_zip.training.clock.perf_counter", self)

    def __call__(self):
        self.now += self.tick
        return self.now
