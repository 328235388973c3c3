"""A learner, unlabelled inputs and options → the learner, trained in place."""

import logging
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Subset
from transformers import TrainerState

from hf_zip.collect import check_inputs
from hf_zip.errors import HfZipError
from hf_zip.training.callbacks import HELD_OUT
from hf_zip.training.checkpoints import (
    check_same_training,
    digest_of,
    finished,
    last_checkpoint,
    state_of,
    weights_of,
)
from hf_zip.training.clock import share_at
from hf_zip.training.learner import Learner
from hf_zip.training.options import TrainingOptions
from hf_zip.training.trained import Curve, Trained
from hf_zip.training.trainer import LossTrainer, make_trainer

logger = logging.getLogger(__name__)

# Where the same training may go on differently: nothing of this changes what is learnt.
_FREE = ("checkpoints", "every", "report_to", "checkpoint_activations")


def train(
    learner: Learner,
    inputs: Any,
    options: TrainingOptions,
    seed: int = 0,
    identity: Mapping[str, Any] | None = None,
    description: str = "training",
    progress: bool = True,
) -> Trained:
    """Trains the parameters of a learner that require gradients, in place, with Adam.

    Any number of processes learns the same: the seed decides the batches, each of which is divided
    among them, and its loss is the mean over its inputs. A training that was killed goes on from
    its last checkpoint and learns the same too, unless it has a budget in seconds. Random numbers
    elsewhere are left as they were.

    Args:
        learner: What is trained; it ends on the accelerator's device, in evaluation mode.
        inputs: A map-style data set, whose rows its `collate`, else torch's, makes batches of.
        options: How to train.
        seed: Decides which inputs are held out, and the batches.
        identity: Plain values by which checkpoints of another training are told.
        description: What is trained, for the progress bar and the record.
        progress: Show it, on the main process.

    Raises:
        HfZipError: There are too few inputs, a batch cannot be divided among the processes, a
            tracker is not known, a loss is not finite, or there are checkpoints of something else.
    """
    check_inputs(inputs)
    if not options.trains:
        return Trained(description, ended="seconds" if options.seconds == 0 else "steps")
    rows, held = _split(inputs, options.held_out, seed)
    with ExitStack() as stack:
        stack.enter_context(own_random_numbers())
        folder = options.checkpoints
        if folder is None:  # what is best on held-out inputs has to be kept somewhere
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hf_zip-"))
        path = Path(folder)
        trainer = make_trainer(learner, rows, held, options, seed, path, description, progress)
        known = {"seed": seed, "inputs": len(inputs), **(identity or {})}
        return replace(_fit(trainer, learner, options, known, path), name=description)


def _fit(
    trainer: LossTrainer,
    learner: Learner,
    options: TrainingOptions,
    identity: Mapping[str, Any],
    folder: Path,
) -> Trained:
    started, last = time.perf_counter(), None
    if options.checkpoints is not None:
        last = _last_of_same(trainer, learner, options, identity, folder)
    if last is None or not finished(last, trainer.args.max_steps):
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
        state = trainer.state
    else:
        state = state_of(last)
        best = state.best_global_step or state.global_step
        learner.load_state_dict(weights_of(folder / f"checkpoint-{best}"))
    trainer.accelerator.wait_for_everyone()
    learner.eval()
    return Trained(
        steps=state.global_step,
        losses=_curve(state.log_history, "loss"),
        held_out=_curve(state.log_history, HELD_OUT),
        best_step=state.best_global_step or state.global_step,
        seconds=time.perf_counter() - started,
        ended=_end(state, trainer.args.max_steps),
    )


def _end(state: TrainerState, steps: int) -> Literal["steps", "seconds", "patience"]:
    """What ended a training of so many steps at most."""
    if state.global_step >= steps:
        return "steps"
    return "seconds" if share_at(state) >= 1 else "patience"


def _curve(history: Sequence[Mapping[str, float]], key: str) -> Curve:
    return tuple((float(entry["step"]), entry[key]) for entry in history if key in entry)


def _last_of_same(
    trainer: LossTrainer,
    learner: Learner,
    options: TrainingOptions,
    identity: Mapping[str, Any],
    folder: Path,
) -> Path | None:
    """The checkpoint to go on from, which is known to be of this very training."""
    told = {key: value for key, value in asdict(options).items() if key not in _FREE}
    start = digest_of(learner.state_dict().values())
    # Every process reads before one of them writes.
    check_same_training(folder, {**told, **identity, "start": start}, writes=False)
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        check_same_training(folder, {**told, **identity, "start": start}, writes=True)
    last = last_checkpoint(folder)
    if last is not None:
        logger.info("the training goes on from %s", last)
    trainer.accelerator.wait_for_everyone()
    return last


def _split(inputs: Any, share: float, seed: int) -> tuple[Any, Any]:
    """The inputs to train on and those held out, nothing where none are."""
    if share == 0:
        return inputs, None
    count = max(1, round(share * len(inputs)))
    if count >= len(inputs):
        raise HfZipError(
            f"of {len(inputs)} inputs {count} would be held out, so none is left to train on; give "
            "more inputs, or held_out: 0"
        )
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed)).tolist()
    return Subset(inputs, order[count:]), Subset(inputs, order[:count])


@contextmanager
def own_random_numbers() -> Iterator[None]:
    """Leaves the random numbers of the program as they were, whatever Trainer seeds."""
    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002 - Trainer seeds it
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)  # noqa: NPY002
