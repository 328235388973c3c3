"""What is known of a training."""

from dataclasses import dataclass
from typing import Literal

Curve = tuple[tuple[float, ...], ...]  # pairs of a step and a loss


@dataclass(frozen=True)
class Trained:
    """What is known of a training.

    Args:
        name: What was trained.
        steps: Steps that were made.
        losses: Mean loss of the training inputs since the point before, with its step.
        held_out: Mean loss of the held-out inputs, with its step; nothing where there were none.
        best_step: The step whose parameters were taken: the best on held-out inputs, or the last.
        seconds: How long it took, from the last start on.
        ended: What ended it: all steps were made, its seconds were spent, or held-out inputs gained
            nothing for as long as its patience was.
    """

    name: str = "training"
    steps: int = 0
    losses: Curve = ()
    held_out: Curve = ()
    best_step: int = 0
    seconds: float = 0.0
    ended: Literal["steps", "seconds", "patience"] = "steps"
