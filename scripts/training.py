"""What the scripts that train small models share: options, split, schedule and record."""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

TRAINING = "training.json"
VALIDATION_SHARE = 0.1
SHORTEST_SCHEDULE = 20


class Labelled(Protocol):
    """Labelled images or texts."""

    def __len__(self) -> int:
        """Returns how many there are."""

    def rows(self, chosen: Int[Tensor, "rows"]) -> Self:
        """Returns some of them."""


Rows = TypeVar("Rows", bound=Labelled)
Setting = TypeVar("Setting")


def add_setting(parser: argparse.ArgumentParser, setting: Any) -> None:
    """Adds one option for every field of a record, whose values are the defaults."""
    for name, value in asdict(setting).items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(value), default=value, help=f"default: {value}")


def read_setting(arguments: argparse.Namespace, setting: Setting) -> Setting:
    """Returns the record that the options of `add_setting` describe."""
    return type(setting)(**{name: getattr(arguments, name) for name in vars(setting)})


def split_validation(data: Rows) -> tuple[Rows, Rows]:
    """Returns what to train on and what to validate on; the same for every model of the data."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    count = round(VALIDATION_SHARE * len(data))
    return data.rows(order[count:]), data.rows(order[:count])


def one_cycle(optimizer: Optimizer, learning_rate: float, steps: int) -> OneCycleLR:
    """Returns a schedule of warmup and cosine.

    Fewer steps than `SHORTEST_SCHEDULE` are the first ones of so many: where the warmup is one
    step long, `OneCycleLR` divides by zero.
    """
    total = max(steps, SHORTEST_SCHEDULE)
    return OneCycleLR(optimizer, learning_rate, total_steps=total, pct_start=0.1)


def fit(
    model: nn.Module,
    rows: int,
    setting: Any,
    loss: Callable[[Int[Tensor, " batch"]], Tensor],
    after_step: Callable[[], object] = lambda: None,
) -> None:
    """Trains a model with AdamW on batches of rows in random order, all of one size.

    Args:
        model: The model.
        rows: How many there are; in every epoch those that fill no batch are left out.
        setting: Has `batch`, `epochs`, `learning_rate` and `weight_decay`.
        loss: Returns the loss on some rows.
        after_step: Called after every step.
    """
    batch = min(setting.batch, rows)
    per_epoch = rows // batch
    optimizer = torch.optim.AdamW(
        model.parameters(), setting.learning_rate, weight_decay=setting.weight_decay, fused=True
    )
    schedule = one_cycle(optimizer, setting.learning_rate, setting.epochs * per_epoch)
    model.train()
    for _ in range(setting.epochs):
        for chosen in torch.randperm(rows)[: per_epoch * batch].split(batch):
            found = loss(chosen)
            optimizer.zero_grad()
            found.backward()
            optimizer.step()
            schedule.step()
            after_step()
    model.eval()


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Writes how a model was trained beside the model."""
    (folder / TRAINING).write_text(json.dumps(record, indent=1) + "\n")


def read_record(folder: Path) -> dict[str, Any]:
    """Returns how a model was trained; nothing where no model is."""
    path = folder / TRAINING
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return record
