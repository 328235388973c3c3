"""Where a model's task head is: by its family's table, or found where there is none."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_zip.adapters import adapter_of, table_of
from hf_zip.errors import HfZipError, first_line
from hf_zip.groups import head_names
from hf_zip.kinds import Kind, head_kind
from hf_zip.probe import random_inputs

# Heads of these kinds have a row per label.
_WITH_ROWS: tuple[Kind, ...] = (
    "classification",
    "multi-label-classification",
    "regression",
    "token-classification",
)


def task_heads(model: PreTrainedModel) -> tuple[str, ...]:
    """Returns the names of the linear layers whose rows are a model's labels; none without any.

    Where the family has a table, they are what it names. Else, in a class that transformers lists
    for the classification of images, videos, sounds, texts or tokens, the head is the linear layer
    outside the base model that has one row per label; if there are several, the one whose output is
    the logits. Other classes have no head whose rows are labels.

    Args:
        model: The model.

    Raises:
        HfZipError: The class is one for classification, and its head is not found.
    """
    table = table_of(str(model.config.model_type))
    return find_heads(model) if table is None else head_names(model, adapter_of(model))


def find_heads(model: PreTrainedModel) -> tuple[str, ...]:
    """Returns the names of the linear layers whose rows are labels, found without a table.

    Args:
        model: The model.

    Raises:
        HfZipError: See `task_heads`.
    """
    labels = model.config.num_labels
    if head_kind(model) not in _WITH_ROWS or not labels:
        return ()
    rows = rows_of_labels(model)
    if not rows:
        raise HfZipError(
            f"the task head of {type(model).__name__} is not found: no linear layer outside its "
            f"base model has {labels} rows, one per label; {_REMEDY}"
        )
    return rows if len(rows) == 1 else (_giving_the_logits(model, rows),)


_REMEDY = "write a table of the family that names it under 'heads'"


def rows_of_labels(model: PreTrainedModel) -> tuple[str, ...]:
    """Returns the names of the linear layers outside the base model with one row per label."""
    base, labels = model.base_model, model.config.num_labels
    inside = set() if base is model else set(base.modules())
    return tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module not in inside and module.out_features == labels
    )


@torch.no_grad()
def _giving_the_logits(model: PreTrainedModel, candidates: tuple[str, ...]) -> str:
    """Which of several linear layers gives the logits, told by one forward on random inputs."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> None:
        def hook(module: nn.Module, given: object, output: Tensor) -> None:
            seen[name] = output

        handles.append(model.get_submodule(name).register_forward_hook(hook))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    for name in candidates:
        keep(name)
    inputs = random_inputs(model, 1, torch.Generator().manual_seed(0))
    listed = ", ".join(candidates)
    try:
        logits = model(**{key: value.to(model.device) for key, value in inputs.items()}).logits
    except Exception as error:  # whatever a foreign class makes of random inputs
        raise HfZipError(
            f"the task head of {type(model).__name__} is one of {listed}, and running the model to "
            f"tell them apart failed: {first_line(error)}; {_REMEDY}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    giving = [
        name
        for name, output in seen.items()
        if output.shape == logits.shape and torch.equal(output, logits)
    ]
    if len(giving) != 1:
        raise HfZipError(
            f"the task head of {type(model).__name__} is not found: {listed} have one row per "
            f"label, and {len(giving)} of them give the logits; {_REMEDY}"
        )
    return giving[0]
