"""What a model learns of others, and how it is rooted."""

from dataclasses import dataclass, field
from typing import Literal

from hf_zip.errors import HfZipError
from hf_zip.ranges import check_between
from hf_zip.training.options import TrainingOptions


@dataclass(frozen=True)
class RootTraining(TrainingOptions):
    """`TrainingOptions` with the defaults of a rooting."""

    steps: int = 1000
    batch_size: int = 32
    learning_rate: float = 3e-4
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: float = 0.1
    anchor: float = 1.0
    max_grad_norm: float = 1.0
    held_out: float = 0.1


@dataclass(frozen=True)
class DistillTraining(RootTraining):
    """`RootTraining`, but nothing is drawn back to the start."""

    anchor: float = 0.0


@dataclass(frozen=True)
class LessonOptions:
    """What a student learns of a teacher.

    Args:
        blocks: After which blocks, counted from 1, features are compared, 0 being the embeddings;
            left out, after every block.
        feature_weight: Weight of the features in the loss, 0 or above; 0 compares answers alone.
        answer_weight: The same of the head's answers.
        temperature: What the logits of both are divided by.
        penalty: Ridge of the maps between features and of the heads that are fitted at the start,
            as a share of the mean diagonal of the Gram.
    """

    blocks: tuple[int, ...] | None = None
    feature_weight: float = 1.0
    answer_weight: float = 1.0
    temperature: float = 2.0
    penalty: float = 1e-3

    def __post_init__(self) -> None:
        """Checks the ranges."""
        endless = float("inf")
        for name in ("feature_weight", "answer_weight", "penalty"):
            check_between(name, getattr(self, name), 0, endless)
        check_between("temperature", self.temperature, 1e-3, endless)
        if self.feature_weight == self.answer_weight == 0:
            raise HfZipError(
                "feature_weight and answer_weight are both 0, so there is nothing to learn; give "
                "one of them a weight"
            )


@dataclass(frozen=True)
class RootingOptions(LessonOptions):
    """How a copy of the root learns what a model does: see also `LessonOptions`.

    Args:
        start: What the copy begins as: "root", the root; "transport", the root with what the model
            was fine-tuned to do beyond its own base, brought there by `hf_zip.transport`, its
            features reordered.
        tolerance: Loss barrier on the way from the root to the rooted model above which there is a
            warning, as a share of the larger loss at the two ends.
        lora_rank: Rank of LoRA adapters, by which alone the linear layers of the trunk are trained
            then; all else but the head stays as it begins. 0 trains all.
        training: How to train, see `hf_zip.training.options`.
    """

    start: Literal["root", "transport"] = "root"
    tolerance: float = 0.1
    lora_rank: int = 0
    training: RootTraining = field(default=RootTraining())

    def __post_init__(self) -> None:
        """Checks the ranges."""
        super().__post_init__()
        for name in ("tolerance", "lora_rank"):
            check_between(name, getattr(self, name), 0, float("inf"))
