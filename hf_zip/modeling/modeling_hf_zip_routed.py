"""A shared model, and what of every source is added or takes its place for an input of its task."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from .configuration_hf_zip_routed import HfZipRoutedConfig
from .modeling_hf_zip_tasks import HfZipStackedModel, NamedTensors

# Not an attribute of the model, which several threads may run.
_READING: ContextVar[object] = ContextVar("hf_zip_reading", default=None)


class _Reached(Exception):  # noqa: N818 - no error: what comes after need not run
    """What a router reads is there."""

    def __init__(self, features: torch.Tensor) -> None:
        super().__init__()
        self.features = features


def features_of(model: nn.Module, place: str, inputs: Mapping[str, Any]) -> torch.Tensor:
    """Returns what goes into a module, `[inputs, features]`, in the mean over an input's tokens.

    What comes after the module's input does not run. Padding does not count.

    Args:
        model: The model.
        place: Name of the module.
        inputs: What the model takes.

    Raises:
        ValueError: The forward never reaches the module.
    """
    mine = object()

    def stop(_: nn.Module, given: Any, named: Mapping[str, Any]) -> None:
        if _READING.get() is mine:
            raise _Reached(given[0] if given else next(iter(named.values())))

    handle = model.get_submodule(place).register_forward_pre_hook(stop, with_kwargs=True)
    token = _READING.set(mine)
    try:
        model(**inputs)
    except _Reached as reached:
        features = reached.features
    else:
        raise ValueError(f"the forward of {type(model).__name__} never reached {place!r}")
    finally:
        _READING.reset(token)
        handle.remove()
    if features.dim() < 3:
        return features
    mask = inputs.get("attention_mask")
    if mask is None or mask.shape != features.shape[:2]:
        return features.mean(dim=1)
    counted = mask.to(features)
    return (counted.unsqueeze(-1) * features).sum(dim=1) / counted.sum(dim=1, keepdim=True)


class HfZipRoutedModel(HfZipStackedModel):
    """Classifies by shared weights, and what a router finds to suit each input.

    What each source knows beside them is added, as thin matrices, or in their place, as it was in
    the source. The shared model runs first, as far as to what the router reads. Inputs that it
    weighs alike then run together, with the weights that are made for them. Where the task is
    known, the router is not asked, but to choose one of several sources of the task.

    Args:
        config: Its configuration.
    """

    config_class = HfZipRoutedConfig

    def __init__(self, config: HfZipRoutedConfig) -> None:
        super().__init__(config)
        count = len(config.members)
        self.router = nn.Linear(config.features, count)
        shapes = {name: self.shared.get_parameter(name).shape for name in config.expert}
        thin = {name: thin_shapes(shape, config.rank) for name, shape in shapes.items()}
        with torch.device("meta"):
            left, right, whole = (
                {
                    name: nn.Parameter(torch.empty(count, *found))
                    for name, shape in shapes.items()
                    if (found := pick(shape, thin[name])) is not None
                }
                for pick in (
                    lambda _, two: two and two[0],
                    lambda _, two: two and two[1],
                    lambda shape, two: None if two else shape,
                )
            )
            separate = {
                name: nn.Parameter(torch.empty(count - 1, *tensor_of(self.shared, name).shape))
                for name in config.separate
            }
        self.left, self.right = NamedTensors(left), NamedTensors(right)
        self.whole, self.separate = NamedTensors(whole), NamedTensors(separate)
        self.post_init()
        self.requires_grad_(False)

    def answer(
        self, inputs: Mapping[str, Any], task: str | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the logits of all labels, and the share of each source in the weights.

        Args:
            inputs: What the shared model takes.
            task: Whose weights to take, where it is known; left out, the router is asked.
        """
        members: list[int] | None = None if task is None else self.task_entry(task)["members"]
        if task and members and (len(members) == 1 or self.config.routing == "soft"):
            count = len(inputs[self.main_input_name])
            weights = self.weights_of(task).expand(count, -1)
            return self._logits(inputs, weights), weights
        scores = self.scores(inputs)
        weights = self.shares(scores, members)
        logits = self._logits(inputs, weights)
        if task is None and self.config.selects:
            logits = self._selected(logits, scores)
        return logits, weights

    def scores(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Returns how likely an input is of each source's task, `[inputs, sources]`, as logits.

        Args:
            inputs: What the shared model takes.
        """
        scores: torch.Tensor = self.router(features_of(self.shared, self.config.reads, inputs))
        return scores.float()

    def shares(self, scores: torch.Tensor, members: list[int] | None = None) -> torch.Tensor:
        """Returns the share of each source in the weights for each input, `[inputs, sources]`.

        Args:
            scores: What the router says of the inputs.
            members: The sources to choose from; left out, all.
        """
        if members is not None:
            others = torch.ones(scores.shape[-1], dtype=torch.bool, device=scores.device)
            others[members] = False
            scores = scores.masked_fill(others, -torch.inf)
        if self.config.routing == "top":
            return nn.functional.one_hot(scores.argmax(dim=-1), scores.shape[-1]).to(scores)
        return scores.softmax(dim=-1)

    def weights_of(self, task: str) -> torch.Tensor:
        """Returns the share of each source in the weights for a task that is known.

        Args:
            task: Name of the task.
        """
        members = self.task_entry(task)["members"]
        weights = torch.zeros(1, len(self.config.members), device=self.device)
        weights[0, members] = 1 / len(members)
        return weights

    def parameters_for(self, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns the parameters that are made for a share of each source, by name.

        Args:
            weights: The shares.
        """
        if bool((weights == 1).any()) and int((weights != 0).sum()) == 1:
            return self.made(int(weights.argmax()), self._of_one)
        return {**dict(self._added(weights)), **dict(self._mixed(weights))}

    def _of_one(self, position: int) -> dict[str, torch.Tensor]:
        weights = torch.zeros(len(self.config.members), device=self.device)
        weights[position] = 1
        # Of its own it has these themselves, not copies.
        own = {name: others[position - 1] for name, others in self.separate.tensors() if position}
        return {**dict(self._added(weights)), **own}

    @torch.no_grad()
    def _added(self, weights: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """What is shared plus what sources add."""
        for (name, left), (_, right) in zip(self.left.tensors(), self.right.tensors(), strict=True):
            shared = self.shared.get_parameter(name)
            precise = torch.promote_types(shared.dtype, torch.float32)
            share = weights.to(precise)[:, None, None]
            columns = torch.cat([*(share * left.to(precise))], dim=1)
            added = columns @ torch.cat([*right.to(precise)])
            yield name, (shared.to(precise) + added.view(shared.shape)).to(shared.dtype)
        for name, whole in self.whole.tensors():
            shared = self.shared.get_parameter(name)
            precise = torch.promote_types(shared.dtype, torch.float32)
            added = torch.tensordot(weights.to(precise), whole.to(precise), dims=1)
            yield name, (shared.to(precise) + added).to(shared.dtype)

    @torch.no_grad()
    def _mixed(self, weights: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """What each source has of its own, mixed."""
        for name, others in self.separate.tensors():
            first = tensor_of(self.shared, name)
            precise = torch.promote_types(first.dtype, torch.float32)
            share = weights.to(precise)
            mixed = torch.tensordot(share[1:], others.to(precise), dims=1)
            yield name, (share[0] * first.to(precise) + mixed).to(first.dtype)

    def _selected(self, logits: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Moves the logits of each task so that softmax says how likely task and label are.

        A source of several tasks is as likely asked for each of them.
        """
        entries, found = self.config.tasks, list[torch.Tensor]()
        likely = scores.log_softmax(dim=-1)
        tasks_of = Counter(member for entry in entries for member in entry["members"])
        for entry in entries:
            own = logits[..., entry["start"] : entry["start"] + len(entry["labels"])].float()
            of_members = [likely[:, m] - math.log(tasks_of[m]) for m in entry["members"]]
            task = torch.stack(of_members).logsumexp(dim=0)
            task = task.view(-1, *[1] * (own.dim() - 1))
            found.append(own - own.logsumexp(dim=-1, keepdim=True) + task)
        return torch.cat(found, dim=-1).to(logits.dtype)

    def _logits(self, inputs: Mapping[str, Any], weights: torch.Tensor) -> torch.Tensor:
        """Runs inputs that have the same weights together."""
        distinct, which = torch.unique(weights, dim=0, return_inverse=True)
        found: list[torch.Tensor] = []
        places: list[torch.Tensor] = []
        for position, shares in enumerate(distinct):
            rows = (which == position).nonzero().squeeze(1)
            some = {
                name: value[rows] if _has_rows(value, len(which)) else value
                for name, value in inputs.items()
            }
            made = self.parameters_for(shares)
            found.append(functional_call(self.shared, made, kwargs=some).logits)
            places.append(rows)
        return torch.cat(found)[torch.cat(places).argsort()]


def tensor_of(model: nn.Module, name: str) -> torch.Tensor:
    """Returns a parameter or buffer of a model.

    Args:
        model: The model.
        name: Its name.
    """
    place, _, leaf = name.rpartition(".")
    found: torch.Tensor = getattr(model.get_submodule(place), leaf)
    return found


def _has_rows(value: Any, count: int) -> bool:
    """Tells whether a value has a row for every input."""
    return isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == count


def thin_shapes(shape: torch.Size, rank: float) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Returns the shapes of the thin matrices for a parameter; nothing where it is kept whole.

    A parameter of several dimensions is a matrix with a row for each entry of the first; dimensions
    of one entry before that are passed over. It is kept whole if the thin matrices were as large.

    Args:
        shape: The parameter's shape.
        rank: Share of the directions to keep.
    """
    sizes = list(shape)
    while len(sizes) > 1 and sizes[0] == 1:
        sizes.pop(0)
    rows, columns = sizes[0] if sizes else 1, math.prod(sizes[1:])
    kept = max(1, round(rank * min(rows, columns)))
    if len(sizes) < 2 or kept * (rows + columns) >= rows * columns:
        return None
    return (rows, kept), (kept, columns)
