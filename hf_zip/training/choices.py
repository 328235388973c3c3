"""What a head chooses between, and the losses that need no labels: entropy and divergence."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hf_zip.kinds import Kind

# Kinds of heads whose answers are choices, so that probabilities can be told.
CHOOSING: tuple[Kind, ...] = (
    "classification",
    "multi-label-classification",
    "token-classification",
    "question-answering",
    "masked-lm",
)


# Kinds of heads whose answers can be compared with those of another model.
COMPARABLE: tuple[Kind, ...] = (*CHOOSING, "regression")


@dataclass(frozen=True)
class Choices:
    """Questions that a head answers of every input, each by a choice between options.

    Args:
        logits: In float32 or float64.
        share: Share of each question in what is said of an input; zero for padded tokens.
    """

    logits: Float[Tensor, "inputs questions options"]
    share: Float[Tensor, "inputs questions"]

    def mean(self, values: Float[Tensor, "inputs questions"]) -> Float[Tensor, " inputs"]:
        """Returns what the questions of each input give on average."""
        return (values * self.share).sum(dim=1)


def choices(output: Any, kind: Kind, batch: Mapping[str, Any]) -> Choices:
    """Returns what a model chose between.

    A classifier is asked once, one of several labels once per label (yes or no), a classifier of
    tokens and a masked language model once per token that is no padding, and one that answers
    questions for the first and for the last token.

    Args:
        output: The model's output.
        kind: What its head answers, one of `CHOOSING`.
        batch: What it was given.
    """
    mask = batch.get("attention_mask")
    if kind == "question-answering":
        logits = _precise(torch.stack([output.start_logits, output.end_logits], dim=1))
        if mask is not None:
            lowest = torch.finfo(logits.dtype).min / 4  # differences of these are still finite
            logits = logits.masked_fill(mask[:, None] == 0, lowest)
        return _of_equals(logits)
    logits = _precise(output.logits)
    if kind == "classification":
        return _of_equals(logits[:, None])
    if kind == "multi-label-classification":
        return _of_equals(torch.stack([logits, torch.zeros_like(logits)], dim=-1))
    if mask is None:
        return _of_equals(logits)
    share = mask.to(logits)
    return Choices(logits, share / share.sum(dim=1, keepdim=True))


def entropy(found: Choices) -> Float[Tensor, " inputs"]:
    """Returns how undecided a model is on each input, in nats, on average over its questions.

    Args:
        found: What it chose between.
    """
    logarithms = found.logits.log_softmax(dim=-1)
    return found.mean(-(logarithms.exp() * logarithms).sum(dim=-1))


def divergence(
    wanted: Choices, found: Choices, temperature: float = 1.0
) -> Float[Tensor, " inputs"]:
    """Returns how far one model's choices are from another's, on average over the questions.

    Args:
        wanted: Those of the model to follow.
        found: Those of the model that follows.
        temperature: What the logits of both are divided by; the divergence is multiplied by its
            square, which keeps the size of gradients.

    Source: Hinton, Vinyals and Dean (2015), https://arxiv.org/abs/1503.02531, section 2; KL.
    """
    theirs = (wanted.logits / temperature).log_softmax(dim=-1)
    own = (found.logits / temperature).log_softmax(dim=-1)
    each = (theirs.exp() * (theirs - own)).sum(dim=-1)
    return temperature**2 * wanted.mean(each)


def answer_error(
    wanted: Any, found: Any, kind: Kind, batch: Mapping[str, Any], temperature: float
) -> Float[Tensor, " inputs"]:
    """Returns how far one model's answers are from another's: squared errors of regressions.

    Args:
        wanted: Output of the model to follow.
        found: Output of the model that follows.
        kind: What their heads answer, one of `COMPARABLE`.
        batch: What they were given.
        temperature: See `divergence`.
    """
    if kind == "regression":
        return (found.logits - wanted.logits).square().mean(dim=-1)
    return divergence(choices(wanted, kind, batch), choices(found, kind, batch), temperature)


def _of_equals(logits: Tensor) -> Choices:
    return Choices(logits, torch.full_like(logits[..., 0], 1 / logits.shape[1]))


def _precise(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
