"""How undecided models are with merged parameters, as a loss on unlabelled inputs."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from hf_zip.coefficients import outputs_of_merge
from hf_zip.errors import HfZipError
from hf_zip.kinds import Kind, head_kind
from hf_zip.method import MergeInputs
from hf_zip.training.choices import CHOOSING, choices, entropy
from hf_zip.training.options import TrainingOptions

# Masked words are what a model chooses between only where a word is masked.
_DECIDED = tuple(kind for kind in CHOOSING if kind != "masked-lm")


def check_recomputed(method: str, training: TrainingOptions) -> None:
    """Checks that activations are not to be computed again in the backward pass.

    Args:
        method: Name of the method that trains.
        training: How it is to train.

    Raises:
        HfZipError: They are.
    """
    if training.checkpoint_activations:
        raise HfZipError(
            f"{method} puts merged parameters into the models for a forward only, so activations "
            "cannot be computed again; leave training.checkpoint_activations out, and raise "
            "training.accumulation to need less memory"
        )


def deciding_kinds(method: str, inputs: MergeInputs) -> list[Kind]:
    """Returns what each model's head answers, which has to be choices.

    Args:
        method: Name of the method that needs them.
        inputs: What it works on.

    Raises:
        HfZipError: The head of a model chooses nothing, or stays apart.
    """
    kinds = [head_kind(model) for model in inputs.runtime.models]
    for position, kind in enumerate(kinds):
        if kind not in _DECIDED:
            raise HfZipError(
                f"{method} lowers the entropy of predictions, but the head of model {position} "
                f"is of kind {kind}, for which there is none, or stays apart from the trunk; use a "
                "method that needs no data, such as 'task_arithmetic' or 'ties'"
            )
    return kinds


def entropy_of_merge(
    models: Sequence[PreTrainedModel],
    merged: Mapping[str, Tensor],
    kinds: Sequence[Kind],
    batches: Sequence[Mapping[str, Any]],
) -> Float[Tensor, " inputs"]:
    """Returns how undecided models are with merged parameters, in their sum for each input.

    Args:
        models: The models; left unchanged.
        merged: See `outputs_of_merge`.
        kinds: What the head of each model answers.
        batches: As many inputs of each model.
    """
    found = outputs_of_merge(models, merged, batches)
    answers = zip(found, kinds, batches, strict=True)
    return torch.stack([entropy(choices(*answer)) for answer in answers]).sum(dim=0)


def identity_of(
    inputs: MergeInputs, training: TrainingOptions, own: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what tells a training from others, where there may be checkpoints.

    Args:
        inputs: What the method works on.
        training: How it trains.
        own: What else tells it, as plain values.
    """
    if training.checkpoints is None:
        return {}
    from hf_zip.training.checkpoints import digest_of

    tensors = [tensor for state in (*inputs.states, inputs.base or {}) for tensor in state.values()]
    return {**own, "sources": digest_of(tensors)}
