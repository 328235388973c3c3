"""What learns: the maps that are folded, those that tell features, and their loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from hf_zip.folding.reading import Reading
from hf_zip.folding.supernet import SuperNet
from hf_zip.kinds import Kind
from hf_zip.rooting.streams import run_with_streams
from hf_zip.training.choices import COMPARABLE, answer_error
from hf_zip.training.learner import Loss


class Folding(nn.Module):
    """What is learnt.

    Args:
        net: The maps that are folded.
        reading: Those that tell each model's features; nothing where features are not compared.
    """

    def __init__(self, net: SuperNet, reading: Reading | None) -> None:
        super().__init__()
        self.net, self.reading = net, reading


@dataclass(frozen=True)
class Lesson:
    """What a model teaches.

    Args:
        model: The model; it is left unchanged.
        place: Which part of a batch it runs on, see `SideBySide`.
        kind: What its head answers.
    """

    model: PreTrainedModel
    place: int
    kind: Kind

    @property
    def answers(self) -> bool:
        """Whether the answers of its head can be compared."""
        return self.kind in COMPARABLE


def folding_loss(
    lessons: Sequence[Lesson],
    blocks: Sequence[int],
    feature_weight: float,
    answer_weight: float,
    temperature: float,
) -> Loss:
    """Returns the loss of each row of a batch: of what every model teaches on its part, the sum.

    Args:
        lessons: What each model teaches.
        blocks: After which blocks features are compared.
        feature_weight: Weight of what is left unexplained of a model's features.
        answer_weight: Weight of the error of the answers, where they can be compared.
        temperature: See `answer_error`.
    """

    def loss(module: Folding, batch: Mapping[str, Any]) -> Tensor:
        trunk, parts = module.net.folded(), []
        for position, lesson in enumerate(lessons):
            given = batch[str(lesson.place)]
            own = {name: p.detach() for name, p in lesson.model.named_parameters()}
            parameters = {**own, **trunk, **module.net.head(position)}
            folded = partial(_call, lesson.model, parameters)
            found, features = run_with_streams(folded, given, blocks)
            with torch.no_grad():
                wanted, right = run_with_streams(lesson.model, given, blocks)
            if module.reading is not None:
                mask = given.get("attention_mask")
                error = module.reading.errors(position, features, right, mask)
                parts.append(feature_weight * error)
            if answer_weight and lesson.answers:
                error = answer_error(wanted, found, lesson.kind, given, temperature)
                parts.append(answer_weight * error)
        return torch.stack(parts).sum(dim=0)

    return loss


def _call(model: nn.Module, parameters: Mapping[str, Tensor], **given: Any) -> Any:
    """What a model gives with other parameters in the place of its own."""
    return functional_call(model, dict(parameters), kwargs=given)
