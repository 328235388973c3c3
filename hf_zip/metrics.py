"""How well a kind of question is answered: sums over batches, and the number that comes of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from hf_zip.errors import HfZipError
from hf_zip.kinds import UNLABELLED, Kind
from hf_zip.tasks import Task

Batch = Mapping[str, Tensor]

# Variance, as a share of the mean square, below which float32 numbers only differ by rounding.
_CONSTANT = 1e-12


@dataclass(frozen=True)
class Metric:
    """How well a kind of question is answered.

    Args:
        name: What tables and cards call it.
        hub: The metric's name on the Hub.
        size: Number of sums, of a number of labels.
        tally: Sums over a batch, of the answer to a task; they add up over batches and processes.
        value: What comes of the sums over all data, at most 1.
    """

    name: str
    hub: str
    size: Callable[[int], int]
    tally: Callable[[Tensor, Batch, Task], Float64[Tensor, " sums"]]
    value: Callable[[Float64[Tensor, " sums"], Task], float]


def metric_of(task: Task) -> Metric:
    """Returns the metric of a task.

    Raises:
        HfZipError: There is none for its kind.
    """
    if task.kind not in METRICS:
        raise HfZipError(
            f"the heads of task {task.name!r} are of the kind {task.kind!r}, which no metric is "
            f"known for; known: {', '.join(METRICS)}. Leave out its evaluation data"
        )
    return METRICS[task.kind]


def hub_metric(name: str) -> str:
    """Returns what the Hub calls the metric of a name in tables; the name itself if unknown."""
    return next((metric.hub for metric in METRICS.values() if metric.name == name), name)


def _share(right: Tensor, counted: Tensor | None = None) -> Float64[Tensor, " sums"]:
    counted = torch.ones_like(right) if counted is None else counted
    sums = torch.stack([(right & counted.bool()).sum(), counted.sum()])
    return sums.cpu().double()


def _classes(
    answer: Float[Tensor, "batch labels"], batch: Batch, task: Task
) -> Float64[Tensor, "2"]:
    labels = batch["labels"]
    _check_range(labels, answer.shape[-1], task)
    return _share(answer.argmax(dim=-1) == labels)


def _tokens(
    answer: Float[Tensor, "batch tokens labels"], batch: Batch, task: Task
) -> Float64[Tensor, "2"]:
    labels = batch["labels"]
    if labels.shape != answer.shape[:-1]:
        raise HfZipError(
            f"the labels of task {task.name!r} have shape {tuple(labels.shape)} in a batch of "
            f"{tuple(answer.shape[:-1])} tokens; give one label per token, {UNLABELLED} where a "
            "token has none"
        )
    counted = labels != UNLABELLED
    _check_range(labels[counted], answer.shape[-1], task)
    return _share(answer.argmax(dim=-1) == labels, counted)


def _spans(
    answer: Float[Tensor, "batch tokens 2"], batch: Batch, task: Task
) -> Float64[Tensor, "2"]:
    if "attention_mask" in batch:  # else padding could be taken for an answer
        padded = batch["attention_mask"] == 0
        answer = answer.masked_fill(padded.unsqueeze(-1), -torch.inf)
    wanted = torch.stack([batch["start_positions"], batch["end_positions"]], dim=-1)
    _check_range(wanted, answer.shape[1], task, "position")
    return _share((answer.argmax(dim=1) == wanted).all(dim=-1))


def _decisions(
    answer: Float[Tensor, "batch labels"], batch: Batch, task: Task
) -> Float64[Tensor, "2"]:
    labels = batch["labels"]
    if labels.shape != answer.shape or not ((labels == 0) | (labels == 1)).all():
        raise HfZipError(
            f"the labels of task {task.name!r} have shape {tuple(labels.shape)}, but should be "
            f"{answer.shape[-1]} zeros and ones for every input, one per label"
        )
    return _share((answer > 0) == labels.bool())


def _products(
    answer: Float[Tensor, "batch columns"], batch: Batch, task: Task
) -> Float64[Tensor, " sums"]:
    found, wanted = answer.cpu().double(), batch["labels"].cpu().double()
    if wanted.numel() != found.numel() or not wanted.isfinite().all():
        raise HfZipError(
            f"the labels of task {task.name!r} have shape {tuple(wanted.shape)}, but should be "
            f"{found.shape[-1]} finite numbers for every input"
        )
    wanted = wanted.reshape(found.shape)
    terms = (torch.ones_like(found), found, wanted, found**2, wanted**2, found * wanted)
    return torch.stack([term.sum(dim=0) for term in terms]).flatten()


def _ratio(sums: Float64[Tensor, "2"], task: Task) -> float:
    right, counted = sums.tolist()
    if not counted:
        raise HfZipError(
            f"no token of the evaluation data of task {task.name!r} has a label, so there is "
            f"nothing to answer; give labels other than {UNLABELLED}"
        )
    share: float = right / counted
    return share


def _correlation(sums: Float64[Tensor, " sums"], task: Task) -> float:
    """Pearson's correlation, its mean over columns; an answer that does not vary has none, 0."""
    count, found, wanted, found_square, wanted_square, product = sums.reshape(6, -1)
    found_variance = found_square - found**2 / count
    wanted_variance = wanted_square - wanted**2 / count
    if (wanted_variance <= _CONSTANT * wanted_square).any():
        raise HfZipError(
            f"the labels of task {task.name!r} do not vary, so nothing correlates with them; give "
            "evaluation data with at least two different values in every column"
        )
    varies = found_variance > _CONSTANT * found_square
    scale = torch.where(varies, found_variance * wanted_variance, 1.0).sqrt()
    correlations = torch.where(varies, (product - found * wanted / count) / scale, 0.0)
    return float(correlations.clamp(-1, 1).mean())


def _check_range(labels: Int[Tensor, "..."], stop: int, task: Task, what: str = "label") -> None:
    if not labels.numel():
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= stop:
        raise HfZipError(
            f"the evaluation data of task {task.name!r} has {what} {low if low < 0 else high}, but "
            f"its {what}s are numbered from 0 to {stop - 1}; map the data's {what}s to the model's"
        )


def _two(_: int) -> int:
    return 2


METRICS: Mapping[Kind, Metric] = {
    "classification": Metric("accuracy", "accuracy", _two, _classes, _ratio),
    # Over tokens that have a label.
    "token-classification": Metric("token accuracy", "accuracy", _two, _tokens, _ratio),
    "masked-lm": Metric("masked-token accuracy", "accuracy", _two, _tokens, _ratio),
    # Over inputs: start and end have to be right.
    "question-answering": Metric("exact spans", "exact_match", _two, _spans, _ratio),
    # Over all pairs of input and label, which is said to apply where its logit is above 0.
    "multi-label-classification": Metric("label accuracy", "accuracy", _two, _decisions, _ratio),
    "regression": Metric("Pearson r", "pearsonr", lambda n: 6 * n, _products, _correlation),
}
