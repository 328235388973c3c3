"""What a copy of a root begins as where its model was fine-tuned from another base."""

from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedModel

from hf_zip.adapters import Adapter
from hf_zip.align import State
from hf_zip.errors import HfZipError
from hf_zip.groups import head_names
from hf_zip.refit.head import refit_heads, trunk_of
from hf_zip.transport import bring, pretrained

Running = tuple[int, Accelerator, bool]  # inputs per forward, what to run under, progress bars


def transported_start(
    model: PreTrainedModel,
    root: State,
    own_base: State | None,
    inputs: Any,
    adapter: Adapter | None,
    penalty: float,
    running: Running,
) -> tuple[State, State]:
    """Returns a root with what a model was fine-tuned to do elsewhere, and the head that reads it.

    Features are reordered, not rotated: the root stays in the form in which its other fine-tunes
    are. The head is the model's, brought along, and what a least-squares fit of its answers differs
    from that. So for a root that is the own base with its features reordered, both are exact.

    Args:
        model: The model; on the CPU in the end.
        root: The root's parameters by name, heads left out.
        own_base: Those of what the model was fine-tuned from.
        inputs: A map-style data set of keyword arguments for the models.
        adapter: Their family's table.
        penalty: See `refit_heads`.
        running: How the models are run.

    Raises:
        HfZipError: There is no table or no own base.
    """
    name = type(model).__name__
    if adapter is None:
        raise HfZipError(
            f"start is 'transport', but no table says what the features of {name} are, so nothing "
            "can be brought to the root; leave start out"
        )
    if own_base is None:
        raise HfZipError(
            f"start is 'transport', but what {name} was fine-tuned from is not given; name it "
            "(models[].base_model of a recipe, --own-base) or leave start out"
        )
    size, accelerator, progress = running
    model.cpu()
    found = bring(
        model,
        own_base,
        pretrained(model, root, adapter, "permute"),
        adapter,
        inputs,
        alignment="permute",
        batch_size=size,
        accelerator=accelerator,
        progress=progress,
    ).model
    trunk, names = trunk_of(found, adapter), head_names(model, adapter)
    heads = {
        key: tensor.detach().cpu()
        for key, tensor in found.named_parameters()
        if key.startswith(tuple(f"{own}." for own in names))
    }
    if names:
        wanted, brought = refit_heads(trunk, [model, found], adapter, inputs, penalty, *running)
        heads = {key: own + wanted[key].cpu() - brought[key].cpu() for key, own in heads.items()}
    model.cpu()
    return trunk, heads
