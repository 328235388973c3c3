"""How to train: how long, how fast, how precisely, and what to keep on the way."""

import os
from dataclasses import dataclass
from typing import Literal

from hf_zip.errors import HfZipError
from hf_zip.ranges import check_between


@dataclass(frozen=True)
class TrainingOptions:
    """How to train, whatever it is that learns.

    Args:
        steps: Steps of the optimiser (Adam), at least 0.
        epochs: Passes over the inputs, in the place of `steps`.
        seconds: How long to train, at least 0, unless `steps` or `epochs` are over before; left
            out, as long as these take. The last look at held-out inputs comes on top. How many
            steps there are then depends on the machine, and is recorded.
        batch_size: Inputs per step, over all processes and forwards together. Inputs that fill no
            batch are left out of an epoch, others in every one.
        accumulation: Forwards that a step is divided into, to need less memory.
        learning_rate: The highest one.
        schedule: What becomes of it: "constant", or down to zero in a line or along a cosine.
        warmup: Share of the steps in which it rises from zero, in [0, 1]. It and `schedule` follow
            the share of `seconds` instead where that is further.
        anchor: How strongly parameters are pulled back to where they began, each step by `anchor`
            times the learning rate of the way: weight decay, but towards the start.
        max_grad_norm: Longer gradients are shortened to this; 0 leaves them.
        precision: Of the forwards; parameters and optimiser stay in float32.
        checkpoint_activations: Compute activations again in the backward pass instead of keeping
            them, for models that can.
        held_out: Share of the inputs that is not trained on, in [0, 1); with any, what is best on
            them is taken in the end.
        every: Steps between two looks at the held-out inputs, and between two checkpoints.
        patience: Looks without a better loss after which the training stops; left out, it does not.
        checkpoints: Folder for checkpoints; a training that was stopped goes on from the last one
            there. Left out, none are kept.
        report_to: Trackers as of transformers' `TrainingArguments`, such as "tensorboard", which
            writes into the folder of checkpoints.
    """

    steps: int = 500
    epochs: int | None = None
    seconds: float | None = None
    batch_size: int = 16
    accumulation: int = 1
    learning_rate: float = 1e-3
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: float = 0.0
    anchor: float = 0.0
    max_grad_norm: float = 0.0
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    checkpoint_activations: bool = False
    held_out: float = 0.0
    every: int = 100
    patience: int | None = None
    checkpoints: str | None = None
    report_to: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks the ranges."""
        endless = float("inf")
        check_between("steps", self.steps, 0, endless)
        for name in ("epochs", "patience"):
            if getattr(self, name) is not None:
                check_between(name, getattr(self, name), 1, endless)
        if self.seconds is not None:
            check_between("seconds", self.seconds, 0, endless)
        for name in ("batch_size", "accumulation", "every"):
            check_between(name, getattr(self, name), 1, endless)
        for name in ("learning_rate", "anchor", "max_grad_norm"):
            check_between(name, getattr(self, name), 0, endless)
        check_between("warmup", self.warmup)
        check_between("held_out", self.held_out, 0, 0.9)
        if self.patience is not None and not self.held_out:
            raise HfZipError(
                f"patience is {self.patience}, but no inputs are held out to look at; set held_out "
                "to their share, such as 0.1"
            )
        # Where transformers writes these logs is a temporary folder, unless it is told another.
        told = self.checkpoints or os.environ.get("TENSORBOARD_LOGGING_DIR")
        if {"tensorboard", "all"} & {*self.report_to} and not told:
            raise HfZipError(
                f"report_to is {', '.join(self.report_to)}, but TensorBoard's logs lie in the "
                "folder of checkpoints, and none is kept; give one as checkpoints"
            )

    @property
    def trains(self) -> bool:
        """Whether there is any time to learn."""
        return self.seconds != 0 and (self.steps > 0 or self.epochs is not None)
