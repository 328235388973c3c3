"""A budget in seconds: what was spent of it, the schedule that follows, and the end."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from accelerate.utils import broadcast
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

POINTS = 100  # of the loss curve, where there are as many steps


class Clock(TrainerCallback, ExportableState):
    """Ends a training when its seconds are spent.

    The main process looks at the time and tells the others, so that all stop after the same step
    and learn at the same rate. What was spent until a checkpoint stands in it, and is not given
    again. Looks at held-out inputs and checkpoints count, but for those of the last step.

    Args:
        seconds: How many there are.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._began: float | None = None
        # Set again from a checkpoint.
        self.spent = 0.0  # until the training began, in seconds
        self.share = 0.0  # of the seconds, when they were looked at last
        self.points = 0  # of the loss curve

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps."""
        kept = {"spent": self._now(), "share": self.share, "points": self.points}
        return {"args": {"seconds": self._seconds}, "attributes": kept}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Begins to count."""
        self._began = perf_counter()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Looks at the time, before the learning rate of the next step is decided."""
        spent = self._now()
        if args.world_size > 1:
            spent = broadcast(torch.tensor(spent, device=args.device), from_process=0).item()
        self.share = spent / self._seconds

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Says when to log, and when to stop; what was learnt is looked at and kept then."""
        points = int(POINTS * min(1.0, max(self.share, state.global_step / state.max_steps)))
        if points > self.points:
            self.points, control.should_log = points, True
        if self.share >= 1:
            control.should_training_stop = True
            control.should_evaluate |= args.eval_strategy != "no"
            control.should_save |= args.save_strategy != "no"

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Leaves in the state what `share_at` reads."""
        state.stateful_callbacks[type(self).__name__] = self.state()

    def _now(self) -> float:
        """The seconds that are spent."""
        return self.spent + (0.0 if self._began is None else perf_counter() - self._began)

    def hastened(self, rate: Callable[[float], float], steps: int) -> Callable[[float], float]:
        """Returns a schedule that is as far as the steps or as the time, whichever is further.

        Args:
            rate: The factor of the learning rate after so many steps.
            steps: After how many it ends.
        """
        return lambda step: rate(max(step, min(1.0, self.share) * steps))


def share_at(state: TrainerState) -> float:
    """Returns the share of its seconds that a training has spent; 0 if they are not counted."""
    return _kept(state).get("share", 0.0)


def spent_at(state: TrainerState) -> float:
    """Returns the seconds that a training had spent at its last checkpoint, likewise."""
    return _kept(state).get("spent", 0.0)


def _kept(state: TrainerState) -> dict[str, Any]:
    known: Any = state.stateful_callbacks.get(Clock.__name__, {})
    return known.get("attributes", {})
