"""What a model holds for likely, drawn from its own answers, so that no labels are needed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from hf_zip.collect import collation
from hf_zip.errors import HfZipError
from hf_zip.kinds import Kind, head_kind

POSITION = "hf_zip_position"
# What models without a head put out, in the order of preference.
_FEATURES = (
    ("image_embeds", "text_embeds"),
    ("image_embeds",),
    ("text_embeds",),
    ("pooler_output",),
    ("last_hidden_state",),
)


class Numbered(Dataset[Any]):
    """Inputs with their positions, so that what is drawn for one depends on nothing else.

    Args:
        inputs: A map-style data set of keyword arguments for a model.
    """

    def __init__(self, inputs: Any) -> None:
        self._inputs = inputs

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, position: int) -> tuple[int, Any]:
        return position, self._inputs[position]

    def collate(self, rows: Sequence[tuple[int, Any]]) -> dict[str, Tensor]:
        """Returns a batch of the model's arguments, and the positions as `POSITION`."""
        positions, given = zip(*rows, strict=True)
        batch = collation(self._inputs)(list(given))
        return {**batch, POSITION: torch.tensor(positions)}


def check_likelihood(method: str, model: PreTrainedModel) -> None:
    """Checks that something can be drawn from what a model answers.

    Raises:
        HfZipError: It fills in masked words, of which calibration inputs have none.
    """
    if head_kind(model) == "masked-lm":
        raise HfZipError(
            f"{method!r} draws answers of the models, but {type(model).__name__} answers for "
            "masked words, and calibration inputs have none; use 'regmean', or models of their "
            "trunks"
        )


def drawn_loss(
    model: PreTrainedModel, batch: Mapping[str, Tensor], seeds: Sequence[int]
) -> Float[Tensor, ""]:
    """Returns -log p(y | x), summed over a batch, of answers y that are drawn from the model.

    One label per input for classifiers, one per token for token classifiers, yes or no per label,
    and a start and an end for question answering. Numbers and features are taken for means of
    normal distributions of unit variance; their draws are one standard deviation above or below,
    which has the same second moment. Padding counts nowhere.

    Args:
        model: The model.
        batch: Its arguments, with `POSITION`.
        seeds: Decide the draws, together with the position of the input.
    """
    given = {key: value for key, value in batch.items() if key != POSITION}
    output, kind = model(**given), head_kind(model)
    mask = batch.get("attention_mask")
    losses = list[Tensor]()
    for index, position in enumerate(batch[POSITION].tolist()):
        generator = torch.Generator().manual_seed(_seed((*seeds, position)))
        real = None if mask is None else mask[index].bool()
        answers = _answers(output, kind, index, real)
        losses += [_loss(answer, kind, generator) for answer in answers]
    return torch.stack(losses).sum()


def _answers(output: Any, kind: Kind, index: int, real: Tensor | None) -> Iterator[Tensor]:
    """What a model says of one input, a row for every answer."""
    if kind == "question-answering":
        for logits in (output.start_logits[index], output.end_logits[index]):
            yield (logits if real is None else logits[real])[None]
    elif kind in ("features", "other"):
        for name in _features(output):
            features = output[name][index]
            tokens = real is not None and features.shape[:-1] == real.shape
            yield features[real] if tokens else features
    else:
        logits = output.logits[index]
        yield logits[None] if logits.dim() == 1 else logits if real is None else logits[real]


def _features(output: Any) -> tuple[str, ...]:
    for names in _FEATURES:
        if all(output.get(name) is not None for name in names):
            return names
    raise HfZipError(
        f"a {type(output).__name__} has no answer to draw from: it has {', '.join(output)}, but "
        "should have logits of labels, embeddings or hidden states; use 'regmean'"
    )


def _loss(answer: Tensor, kind: Kind, generator: torch.Generator) -> Tensor:
    if kind in ("regression", "features", "other"):
        signs = torch.randint(2, answer.shape, generator=generator).to(answer) * 2 - 1
        return (signs * answer).sum()
    if kind == "multi-label-classification":
        chance = torch.rand(answer.shape, generator=generator, dtype=torch.float64)
        drawn = (chance.to(answer.device) < answer.detach().double().sigmoid()).to(answer)
        return torch.nn.functional.binary_cross_entropy_with_logits(answer, drawn, reduction="sum")
    return torch.nn.functional.cross_entropy(answer, _labels(answer, generator), reduction="sum")


def _labels(logits: Float[Tensor, "rows labels"], generator: torch.Generator) -> Tensor:
    """One label for every row, drawn by its probability."""
    share: Float64[Tensor, "rows labels"] = logits.detach().double().softmax(dim=-1).cumsum(dim=-1)
    chance = torch.rand(len(logits), 1, generator=generator, dtype=torch.float64)
    # The last sum may be a little below 1.
    return (chance.to(share.device) > share).sum(dim=-1).clamp(max=logits.shape[-1] - 1)


def _seed(parts: Sequence[int]) -> int:
    """One number for several, spread over the seeds of a generator."""
    found = 0
    for part in parts:
        found = (found * 0x9E3779B97F4A7C15 + part + 1) % 2**63
    return found
