"""Models and batches in, statistics out: the only place with hooks, under Accelerate."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, tqdm
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.data import DataLoader, Subset, default_collate
from transformers.utils import ModelOutput

from hf_zip.errors import HfZipError
from hf_zip.groups import MergeGroup, Tap
from hf_zip.names import owner


@runtime_checkable
class Sums(Protocol):
    """A statistic whose state is plain sums: those of several processes add up."""

    def state(self) -> Any:
        """Returns the sums."""

    def load_state(self, state: Any) -> None:
        """Replaces the sums."""


@runtime_checkable
class Accumulator(Sums, Protocol):
    """Sums over rows of features that grow batch by batch."""

    def update(self, x: Tensor) -> None:
        """Adds rows of features."""


A = TypeVar("A", bound=Accumulator)
S = TypeVar("S", bound=Sums)


@dataclass(frozen=True)
class Observation:
    """Features of one or several models at given places, side by side.

    Args:
        size: Number of features in all.
        places: Position of a model and where to look in it; features are concatenated in order.
    """

    size: int
    places: tuple[tuple[int, Tap], ...]


def group_observations(group: MergeGroup, num_models: int) -> list[Observation]:
    """Returns one observation per tap of a group: the features of all models, side by side."""
    return [
        Observation(group.size * num_models, tuple((k, tap) for k in range(num_models)))
        for tap in group.taps
    ]


def make_accelerator() -> Accelerator:
    """Returns an Accelerator whose loaders never repeat a sample to even out the processes."""
    return Accelerator(dataloader_config=DataLoaderConfiguration(even_batches=False))


def check_inputs(inputs: Any) -> None:
    """Checks that there are calibration inputs.

    Raises:
        HfZipError: There are none.
    """
    if not len(inputs):
        raise HfZipError("there are no calibration inputs; give a data set with at least one row")


def make_loader(inputs: Any, batch_size: int, accelerator: Accelerator) -> Any:
    """Returns this process's batches of a map-style data set, in its order."""
    loader: DataLoader[Any] = DataLoader(
        inputs, batch_size=batch_size, shuffle=False, collate_fn=collation(inputs)
    )
    return accelerator.prepare(loader)


def collation(inputs: Any) -> Callable[[list[Any]], dict[str, Tensor]]:
    """Returns what makes a batch of inputs: the data set's own `collate`, else torch's."""
    while isinstance(inputs, Subset):
        inputs = inputs.dataset
    return getattr(inputs, "collate", default_collate)


def collect(
    models: Sequence[nn.Module],
    inputs: Any,
    observations: Sequence[Observation],
    statistic: Callable[..., A],
    batch_size: int,
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> list[A]:
    """Returns one statistic per observation, over all inputs and all processes.

    Every model runs on every input; padded tokens, those that an input's `attention_mask` leaves
    out, count nowhere. Each process works on its own batches and the sums are reduced once at the
    end, so any number of processes gives the same numbers.

    Args:
        models: Models of one architecture; they are moved to the accelerator's device.
        inputs: A map-style data set of keyword arguments for the models.
        observations: Where to look.
        statistic: Makes an accumulator from a number of features and a `device`.
        batch_size: Inputs per forward.
        accelerator: The accelerator to run under; made here when left out.
        progress: Show a progress bar, on the main process.

    Raises:
        HfZipError: There are no inputs, a model has no such module, or its features there are not
            those of the tokens.
    """
    check_inputs(inputs)
    accelerator = accelerator or make_accelerator()
    models = [model.to(accelerator.device).eval() for model in models]
    accumulators = [statistic(o.size, device=accelerator.device) for o in observations]
    loader = make_loader(inputs, batch_size, accelerator)
    taps = [
        list(dict.fromkeys(tap for o in observations for k, tap in o.places if k == position))
        for position in range(len(models))
    ]
    for batch in tqdm(loader, desc="calibration", disable=not progress, leave=False):
        seen = [observe(*pair, batch) for pair in zip(models, taps, strict=True)]
        for observation, accumulator in zip(observations, accumulators, strict=True):
            accumulator.update(torch.cat([seen[k][tap] for k, tap in observation.places], dim=1))
        del seen  # else these features would be held while the next batch runs
    return [reduced(accumulator, accelerator) for accumulator in accumulators]


def reduced(statistic: S, accelerator: Accelerator) -> S:
    """Returns a statistic after it has received the sums of all processes."""
    if accelerator.num_processes > 1:
        statistic.load_state(accelerator.reduce(statistic.state(), reduction="sum"))
    return statistic


@torch.no_grad()
def observe(
    model: nn.Module, taps: Sequence[Tap], batch: Mapping[str, Tensor]
) -> dict[Tap, Tensor]:
    """Returns what one forward shows at the taps, as `[rows, features]`, padded tokens left out.

    Raises:
        HfZipError: The model has no such module, the forward did not reach it, or the features
            there are not those of the tokens that the batch's `attention_mask` speaks of.
    """
    with capture(model, taps, batch.get("attention_mask")) as seen:
        model(**batch)
    check_seen(model, taps, seen)
    return seen


def check_seen(model: nn.Module, taps: Sequence[Tap], seen: Mapping[Tap, Tensor]) -> None:
    """Checks that a forward has reached what was to be observed.

    Args:
        model: The model.
        taps: Where to look.
        seen: What `capture` has recorded.

    Raises:
        HfZipError: It did not.
    """
    for tap in taps:
        if tap not in seen:
            raise HfZipError(
                f"the forward of {type(model).__name__} never reached {tap.module!r}, so its "
                f"{tap.side} cannot be observed"
            )


@contextmanager
def capture(
    model: nn.Module, taps: Sequence[Tap], mask: Tensor | None = None
) -> Iterator[dict[Tap, Tensor]]:
    """Yields a record that fills with `[rows, features]` at each tap as the model runs.

    Args:
        model: The model.
        taps: Where to look.
        mask: `[inputs, tokens]`, zero at the tokens whose rows are left out. Where there is one
            row per input, as after pooling, and in what takes images, all are taken.

    Raises:
        HfZipError: The model has no such module; or, as it runs, the features at a tap are not
            those of the mask's tokens.
    """
    seen, handles, modules = dict[Tap, Tensor](), [], dict(model.named_modules())
    try:
        for tap in taps:
            if tap.module not in modules:
                raise HfZipError(f"{type(model).__name__} has no module {tap.module!r} to observe")
            own = mask_at(model, tap.module, mask)
            handles.append(_hook(modules[tap.module], tap, seen, own))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _hook(module: nn.Module, tap: Tap, seen: dict[Tap, Tensor], mask: Tensor | None) -> Any:
    def keep(features: Any) -> None:
        tensor = features[0] if isinstance(features, tuple | ModelOutput) else features
        seen[tap] = rows_of(tensor, tap, mask)

    if tap.side in ("keys", "values"):
        part = ("queries", "keys", "values").index(tap.side)
        return module.register_forward_pre_hook(
            lambda attention, args: keep(_projected(attention, args[part], part))
        )
    if tap.side == "input":
        # Some blocks call their layers by keyword, so positional arguments may be empty.
        return module.register_forward_pre_hook(
            lambda _, args, kwargs: keep(args[0] if args else next(iter(kwargs.values()))),
            with_kwargs=True,
        )
    return module.register_forward_hook(lambda _, __, output: keep(output))


def mask_at(model: nn.Module, module: str, mask: Tensor | None) -> Tensor | None:
    """Returns the mask of what a module sees: in what takes images there is none."""
    images = getattr(owner(model, module), "main_input_name", "") == "pixel_values"
    return None if images else mask


def rows_of(features: Tensor, tap: Tap, mask: Tensor | None) -> Tensor:
    """Returns features as `[rows, features]`, padded tokens left out.

    Args:
        features: What was seen.
        tap: Where, for messages.
        mask: See `capture`.

    Raises:
        HfZipError: They are not those of the mask's tokens.
    """
    if mask is not None and features.dim() > 2:
        features = features[_real(mask, features, tap)]
    return features.reshape(-1, features.shape[-1])


def _projected(attention: Any, features: Tensor, part: int) -> Tensor:
    """The queries, keys or values that an `nn.MultiheadAttention` makes inside."""
    weight, bias = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    return linear(features, weight[part], bias[part])


def _real(mask: Tensor, features: Tensor, tap: Tap) -> Tensor:
    """Where the features of a tap are those of tokens that are no padding."""
    if features.shape[:2] != mask.shape:
        raise HfZipError(
            f"the {tap.side} of {tap.module!r} has shape {tuple(features.shape)}, but should have "
            f"one row for each of {tuple(mask.shape)} tokens, as the attention_mask says; without "
            "that, padding cannot be left out"
        )
    return mask.bool()
