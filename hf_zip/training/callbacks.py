"""What happens beside the steps of a training: the anchor, the progress bar."""

from time import perf_counter
from typing import Any

import torch
from accelerate.utils import tqdm
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_zip.training.clock import spent_at

HELD_OUT = "eval_loss"  # what Trainer calls the loss on held-out inputs
_SECONDS = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s [{elapsed}{postfix}]"


class Anchor(TrainerCallback):
    """Pulls parameters back towards where they began, after every step.

    Args:
        module: What is trained, before it is.
        strength: Share of the way, times the learning rate.
    """

    def __init__(self, module: nn.Module, strength: float) -> None:
        self._strength = strength
        self._pairs = [(p, p.detach().clone()) for p in module.parameters() if p.requires_grad]

    @torch.no_grad()
    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Moves every parameter."""
        rate = given["lr_scheduler"].get_last_lr()[0]
        for parameter, start in self._pairs:
            parameter.lerp_(start.to(parameter.device), min(1.0, rate * self._strength))


class Progress(TrainerCallback):
    """One bar on the main process: steps or seconds, time left, the losses.

    Args:
        description: What stands before it.
        seconds: How many there are; left out, the bar is of steps.
    """

    def __init__(self, description: str, seconds: float | None = None) -> None:
        self._description, self._seconds = description, seconds
        self._last = 0.0
        self._bar: Any = None
        self._shown: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Opens the bar where the training stands."""
        given: dict[str, Any] = {"initial": state.global_step, "total": state.max_steps}
        if self._seconds is not None:
            given = {"initial": spent_at(state), "total": self._seconds, "bar_format": _SECONDS}
        self._last = perf_counter()
        self._bar = tqdm(**given, desc=self._description, leave=False)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Moves on by a step, or by the time that it took."""
        if self._seconds is None:
            self._bar.update(1)
            return
        now = perf_counter()
        self._bar.update(min(now - self._last, self._bar.total - self._bar.n))
        self._last = now

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Shows the losses."""
        logs, names = given["logs"], {"loss": "loss", HELD_OUT: "held out"}
        self._shown |= {names[key]: f"{logs[key]:.4g}" for key in names if key in logs}
        self._bar.set_postfix(self._shown)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Closes the bar."""
        self._bar.close()
