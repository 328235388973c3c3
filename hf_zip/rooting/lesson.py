"""What a teacher gives a student to learn: a loss of each input."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from hf_zip.align import State
from hf_zip.errors import HfZipError
from hf_zip.kinds import Kind, head_kind
from hf_zip.rooting.first_fit import first_fit
from hf_zip.rooting.options import LessonOptions
from hf_zip.rooting.streams import StreamMap, checked_blocks, run_with_streams, stream_error
from hf_zip.training.choices import COMPARABLE, answer_error
from hf_zip.training.options import TrainingOptions
from hf_zip.weighing.feed import Feed


@dataclass(frozen=True)
class Lesson:
    """What a teacher gives a student to learn.

    Args:
        teacher: The teacher, on the device of the student.
        options: What is compared, and how much it counts.
        kind: What the teacher's head answers; nothing where answers are not compared.
        blocks: After which blocks features are compared.
        maps: What tells the teacher's features there from the student's.
        rows: Which of the student's logits answer what the teacher does; left out, all.
    """

    teacher: PreTrainedModel
    options: LessonOptions
    kind: Kind | None
    blocks: tuple[int, ...]
    maps: tuple[StreamMap, ...]
    rows: slice | None

    @torch.no_grad()
    def shown(self, batch: Mapping[str, Any]) -> tuple[Any, list[Tensor]]:
        """Returns what the teacher puts out, and its features after the blocks.

        Args:
            batch: What it is given.
        """
        return run_with_streams(self.teacher, batch, self.blocks)

    def loss(
        self, output: Any, batch: Mapping[str, Any], shown: tuple[Any, list[Tensor]]
    ) -> Float[Tensor, " inputs"]:
        """Returns the loss of each input.

        Args:
            output: What the student puts out, with the features after its blocks.
            batch: What it was given.
            shown: What the teacher has shown of it.
        """
        parts, options, (wanted, theirs) = [], self.options, shown
        if self.blocks:
            own = [output.hidden_states[block] for block in self.blocks]
            error = stream_error(own, theirs, self.maps, batch.get("attention_mask"))
            parts.append(options.feature_weight * error)
        if self.rows is not None:
            output = SimpleNamespace(logits=output.logits[..., self.rows])
        if self.kind is not None:
            error = answer_error(wanted, output, self.kind, batch, options.temperature)
            parts.append(options.answer_weight * error)
        return torch.stack(parts).sum(dim=0)


def plan_lesson(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    inputs: Any,
    options: LessonOptions,
    batch_size: int,
    accelerator: Accelerator,
    progress: bool = True,
    rows: slice | None = None,
    heads: Sequence[str] = (),
) -> tuple[Lesson, State]:
    """Returns what a teacher gives a student to learn, with maps that are fitted as both are now.

    Beside it the parameters of heads with which the student answers likewise, fitted in one go.

    Args:
        student: The student, on the accelerator's device.
        teacher: The teacher, likewise.
        inputs: A map-style data set of keyword arguments for both.
        options: What is compared, and how much it counts.
        batch_size: Inputs per forward.
        accelerator: The accelerator to run under.
        progress: Show a progress bar, on the main process.
        rows: See `Lesson`.
        heads: Names of the student's heads that are fitted.

    Raises:
        HfZipError: The models cannot be compared.
    """
    kind = head_kind(teacher)
    answers = bool(options.answer_weight) and kind in COMPARABLE
    if not answers and not options.feature_weight:
        raise HfZipError(
            f"the head of {type(teacher).__name__} is of kind {kind}, whose answers cannot be "
            "compared, and feature_weight is 0; give the features a weight"
        )
    blocks: tuple[int, ...] = ()
    if options.feature_weight:
        batch = Feed(inputs, batch_size).one(accelerator)
        blocks = checked_blocks(student, teacher, batch, options.blocks)
    running = (batch_size, accelerator, progress)
    found = first_fit(student, teacher, inputs, blocks, heads, options.penalty, *running)
    lesson = Lesson(teacher, options, kind if answers else None, blocks, found.maps, rows)
    return lesson, found.heads


def losses(
    student: Any, batch: Mapping[str, Any], lessons: Sequence[Lesson]
) -> list[Float[Tensor, " inputs"]]:
    """Returns for each lesson the loss of each input, after one forward of the student.

    Args:
        student: The student.
        batch: What it and all teachers are given.
        lessons: At least one.
    """
    return losses_on(batch, lessons)(student)


def losses_on(
    batch: Mapping[str, Any], lessons: Sequence[Lesson]
) -> Callable[[Any], list[Float[Tensor, " inputs"]]]:
    """Returns what gives the losses of any student on a batch; the teachers run once.

    Args:
        batch: See `losses`.
        lessons: See `losses`.
    """
    blocks = max((lesson.blocks for lesson in lessons), key=len)
    shown = [lesson.shown(batch) for lesson in lessons]

    def found(student: Any) -> list[Tensor]:
        output, _ = run_with_streams(student, batch, blocks)
        return [own.loss(output, batch, theirs) for own, theirs in zip(lessons, shown, strict=True)]

    return found


def identity_of_lessons(
    teachers: Sequence[PreTrainedModel], options: LessonOptions, training: TrainingOptions
) -> dict[str, Any]:
    """Returns what tells a training from others, where there may be checkpoints.

    Args:
        teachers: What is learnt from.
        options: What is learnt of them.
        training: How.
    """
    if training.checkpoints is None:
        return {}
    from hf_zip.training.checkpoints import digest_of

    values, names = asdict(options), [own.name for own in fields(LessonOptions)]
    digest = digest_of(own for teacher in teachers for own in teacher.parameters())
    return {**{name: values[name] for name in names}, "model": digest}
