"""Several teachers and a student to begin with → one model that has learnt of all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from hf_zip.align import State, shares
from hf_zip.errors import HfZipError
from hf_zip.learned import learned
from hf_zip.rooting.lesson import Lesson, identity_of_lessons, losses, plan_lesson
from hf_zip.rooting.options import LessonOptions
from hf_zip.rooting.student import compute_activations_again, make_student, put
from hf_zip.side_by_side import SideBySide, distinct_sets
from hf_zip.training.learner import Learner
from hf_zip.training.options import TrainingOptions
from hf_zip.training.trained import Trained
from hf_zip.weighing.feed import Feed


@dataclass(frozen=True)
class Start:
    """What a student begins with, or has become.

    Args:
        trunk: What its answers to all teachers share, by name.
        heads: For each teacher the parameters of its head, empty where all share one.
        config: Entries of the config that differ from those of the first teacher.
        fitted: Positions of teachers whose heads are still to be fitted to the trunk's features.
    """

    trunk: State
    heads: tuple[State, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    fitted: tuple[int, ...] = ()


def distil(
    teachers: Sequence[PreTrainedModel],
    feeds: Sequence[Feed],
    weights: Sequence[float],
    start: Start,
    options: LessonOptions,
    training: TrainingOptions,
    accelerator: Accelerator,
    seed: int = 0,
    name: str = "distillation",
    progress: bool = True,
) -> tuple[Start, Trained]:
    """Returns a student that was trained to do what all teachers do, on unlabelled inputs.

    Its loss is the mean over the teachers, each compared on its own inputs. Teachers that have the
    same inputs are compared after one forward of the student. Nothing is dropped out.

    Args:
        teachers: The teachers; left unchanged, on the CPU in the end.
        feeds: What each runs on.
        weights: What each weighs in the mean.
        start: What the student begins with.
        options: What it learns of each teacher.
        training: How to train; a step takes a batch of every different set of inputs.
        accelerator: The accelerator to run under.
        seed: Decides the batches.
        name: What the training is called.
        progress: Show progress bars, on the main process.

    Returns:
        The student, on the CPU, and what is known of its training.

    Raises:
        HfZipError: A weight is negative, there are no inputs, the models cannot be compared, or
            the training fails.

    Source: distillation (https://arxiv.org/abs/1503.02531); of several teachers with labels of
    their own into one student, Shen et al. (https://arxiv.org/abs/1811.02796), there layer by layer
    and not in one go.
    """
    from hf_zip.training.train import train  # whose transformers.Trainer takes seconds to import

    for position, weight in enumerate(weights):
        if weight < 0:
            raise HfZipError(
                f"the weight of model {position} is {weight}, so what it does would be unlearnt; "
                "give a weight of at least 0"
            )
    device = accelerator.device
    sets, places = distinct_sets(feeds)
    taught = [teacher.to(device).eval() for teacher in teachers]
    student = make_student(teachers[0], {**start.trunk, **_stacked(start.heads)}, start.config)
    student = student.to(device).eval()
    rows, lessons, begun = _rows(start.heads), list[Lesson](), list[State]()
    for k, (teacher, feed) in enumerate(zip(taught, feeds, strict=True)):
        names = _modules(start.heads[k]) if k in start.fitted else ()
        running = (feed.batch_size, accelerator, progress, rows[k], names)
        lesson, head = plan_lesson(student, teacher, feed.inputs, options, *running)
        lessons.append(lesson)
        begun.append({**start.heads[k], **head})
    put(student, _stacked(begun))
    parts = shares(len(teachers), weights)

    def loss(own: Any, batch: Mapping[str, Any]) -> Tensor:
        found = dict[int, Tensor]()
        for place in range(len(sets)):
            of_set = [k for k, known in enumerate(places) if known == place]
            each = losses(own, batch[str(place)], [lessons[k] for k in of_set])
            found |= dict(zip(of_set, each, strict=True))
        return torch.stack([part * found[k] for k, part in enumerate(parts)]).sum(dim=0)

    if training.checkpoint_activations:
        compute_activations_again(student)
    trained = train(
        Learner(student, loss),
        SideBySide(sets),
        training,
        seed,
        identity={
            **identity_of_lessons(teachers, options, training),
            "weights": parts,
            "places": places,
        },
        description=name,
        progress=progress,
    )
    for teacher in teachers:
        teacher.cpu()
    state = {known: tensor.cpu() for known, tensor in learned(student).items()}
    trunk = {known: state[known] for known in start.trunk}
    heads = tuple(
        {known: state[known][place].clone() for known in own}
        for place, own in zip(rows, start.heads, strict=True)
    )
    return Start(trunk, heads, start.config), trained


def _stacked(heads: Sequence[State]) -> dict[str, Tensor]:
    """The rows of all heads, in order."""
    return {name: torch.cat([head[name].cpu() for head in heads]) for name in heads[0]}


def _modules(head: State) -> list[str]:
    """The names of the linear layers of a head."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in head))


def _rows(heads: Sequence[State]) -> list[slice | None]:
    """Which of these rows are whose; nothing where all teachers share a head."""
    found, first = list[slice | None](), 0
    for head in heads:
        count = max(map(len, head.values()), default=0)
        found.append(slice(first, first + count) if head else None)
        first += count
    return found
