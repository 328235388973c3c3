"""transformers' Trainer for losses of single inputs, which have no labels and no metrics."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainingArguments,
)

from hf_zip.collect import collation, make_loader
from hf_zip.errors import HfZipError, first_line
from hf_zip.training.callbacks import HELD_OUT, Anchor, Progress
from hf_zip.training.clock import POINTS, Clock
from hf_zip.training.learner import Learner
from hf_zip.training.options import TrainingOptions


class LossTrainer(Trainer):
    """Trains a `Learner`.

    What differs from its base: the loss is the mean over inputs, and so is that on held-out inputs,
    each of which counts once over any number of processes. Where there is a `Clock`, the schedule
    follows it.
    """

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Returns the schedule of the learning rate."""
        schedule = super().create_scheduler(num_training_steps, optimizer)
        for clock in self.callback_handler.callbacks:
            if isinstance(clock, Clock):
                rates = [clock.hastened(rate, num_training_steps) for rate in schedule.lr_lambdas]
                schedule.lr_lambdas = rates
        return schedule

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], **_: Any) -> Tensor:
        """Returns the mean loss of a batch."""
        self.loss_is_scaled_for_ga = False
        losses: Tensor = model(**inputs)
        return losses.mean()

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Returns the mean loss of the held-out inputs, and tells the callbacks."""
        metrics = {HELD_OUT: self._mean_held_out()}
        self.log(metrics)
        told = self.callback_handler.on_evaluate(
            self.args,
            self.state,
            self.control,  # type: ignore[has-type]  # of an untyped base
            metrics,
        )
        self.control = told
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs losses.

        Raises:
            HfZipError: One is not finite.
        """
        for key in ("loss", HELD_OUT):
            if not math.isfinite(logs.get(key, 0.0)):
                raise HfZipError(
                    f"the loss is {logs[key]} after {self.state.global_step} steps; lower the "
                    "learning_rate, set max_grad_norm, or use precision: float32"
                )
        super().log(logs, start_time)

    @torch.no_grad()
    def _mean_held_out(self) -> float:
        device = self.args.device
        precise = torch.float32 if device.type == "mps" else torch.float64
        sums = torch.zeros(2, dtype=precise, device=device)
        # Not the wrapper that waits for the other processes: they may have fewer batches.
        learner = self.accelerator.unwrap_model(self.model).eval()
        for batch in make_loader(self.eval_dataset, self.args.train_batch_size, self.accelerator):
            with self.accelerator.autocast():
                losses = learner(**self._prepare_inputs(batch))
            sums += torch.stack([losses.to(precise).sum(), sums.new_tensor(len(losses))])
        total, count = self.accelerator.reduce(sums, reduction="sum").tolist()
        return float(total / count)


def make_trainer(
    learner: Learner,
    rows: Any,
    held: Any,
    options: TrainingOptions,
    seed: int,
    folder: Path,
    description: str,
    progress: bool,
) -> LossTrainer:
    """Returns what trains a learner; nothing has happened yet.

    Args:
        learner: What is trained.
        rows: The inputs to train on.
        held: Those that are held out, if any.
        options: How to train.
        seed: Decides the batches.
        folder: Where checkpoints go.
        description: What stands before the progress bar.
        progress: Show it, on the main process.

    Raises:
        HfZipError: A batch cannot be divided among forwards and processes, or a tracker is not
            known or not installed.
    """
    callbacks: list[Any] = [Anchor(learner, options.anchor)] if options.anchor else []
    if options.seconds is not None:
        callbacks.append(Clock(options.seconds))
    if progress:
        callbacks.append(Progress(description, options.seconds))
    if options.patience is not None:
        callbacks.append(EarlyStoppingCallback(options.patience))
    try:
        trainer = LossTrainer(
            model=learner,
            args=_arguments(options, seed, folder, len(rows), held is not None),
            data_collator=collation(rows),
            train_dataset=rows,
            eval_dataset=held,
            callbacks=callbacks,
        )
    except (ValueError, RuntimeError, ImportError) as error:
        if isinstance(error, HfZipError) or not options.report_to:
            raise
        trackers = ", ".join(options.report_to)
        raise HfZipError(f"cannot report to {trackers}: {first_line(error)}") from error
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer


def _arguments(
    options: TrainingOptions, seed: int, folder: Path, rows: int, holds_out: bool
) -> TrainingArguments:
    batch = min(options.batch_size, rows)
    at_once = batch // options.accumulation
    steps = options.steps
    if options.epochs is not None:
        steps = options.epochs * (rows // batch)
    keeps = options.checkpoints is not None or holds_out
    cpu = not torch.accelerator.is_available()
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=max(at_once, 1),
        gradient_accumulation_steps=options.accumulation,
        learning_rate=options.learning_rate,
        weight_decay=0.0,
        lr_scheduler_type=options.schedule
        if options.schedule != "constant"
        else "constant_with_warmup",
        warmup_steps=round(options.warmup * steps),
        max_grad_norm=options.max_grad_norm,
        bf16=options.precision == "bfloat16",
        fp16=options.precision == "float16",
        use_cpu=cpu,
        seed=seed,
        data_seed=seed,
        # One order of inputs, of which every process takes its part of each batch.
        accelerator_config={"split_batches": True, "even_batches": False},
        dataloader_drop_last=True,
        dataloader_pin_memory=not cpu,
        remove_unused_columns=False,
        logging_strategy="steps" if options.seconds is None else "no",  # or as the clock says
        logging_steps=max(1, steps // POINTS),
        logging_nan_inf_filter=False,
        save_strategy="steps" if keeps else "no",
        save_steps=options.every,
        save_total_limit=2,  # the last and the best
        eval_strategy="steps" if holds_out else "no",
        eval_steps=options.every,
        load_best_model_at_end=holds_out,
        metric_for_best_model=HELD_OUT if holds_out else None,
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,
        report_to=list(options.report_to) or "none",
        disable_tqdm=True,
    )
    # Several devices of one process are left alone: each process has one.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    if at_once == 0 or at_once % arguments.world_size:
        raise HfZipError(
            f"a batch of {batch} inputs, in {options.accumulation} forwards, cannot be divided "
            f"among {arguments.world_size} processes; batch_size, and the number of inputs where "
            "it is smaller, should be a multiple of accumulation times processes"
        )
    return arguments
