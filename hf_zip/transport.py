"""What fine-tuning added to one pretrained model, in the parameter space of another one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_zip.adapters import Adapter
from hf_zip.align import State, align
from hf_zip.canonical import canonical, obstacle
from hf_zip.covariances import group_covariances
from hf_zip.groups import MergeGroup, head_names, merge_groups
from hf_zip.match import Matching, Plan, match
from hf_zip.refit.head import with_trunk
from hf_zip.rotated import match_rotated

Alignment = Literal["rotate", "permute"]


@dataclass(frozen=True)
class Pretrained:
    """A pretrained model in the class of its fine-tunes, in the form that maps leave exact.

    Args:
        model: It, with the task head of a fine-tune and whatever else it lacks of one.
        state: The parameters of its own, by name.
    """

    model: PreTrainedModel
    state: State


@dataclass(frozen=True)
class Brought:
    """A fine-tune of one pretrained model as one of another.

    Args:
        model: It, in the form of the other pretrained model.
        matching: The maps from the features of the one pretrained model to those of the other.
    """

    model: PreTrainedModel
    matching: Matching


def rotates_stream(model: PreTrainedModel, adapter: Adapter, alignment: Alignment) -> bool:
    """Tells whether an alignment rotates the stream of a model: where that loses nothing.

    Elsewhere its features are reordered: in post-norm models, behind normalised embeddings, with
    several towers, and without a task head that the last normalisation could be folded into.

    Args:
        model: The model.
        adapter: Its family's table.
        alignment: Which maps are asked for.
    """
    whole = bool(head_names(model, adapter)) and not obstacle(adapter, rotated=True)
    return alignment == "rotate" and whole


def in_form(model: PreTrainedModel, adapter: Adapter, alignment: Alignment) -> PreTrainedModel:
    """Returns a model in the form that the maps of an alignment leave exact.

    Args:
        model: The model.
        adapter: Its family's table.
        alignment: Which maps are asked for.

    Returns:
        A copy in canonical form where the stream is rotated, else the model itself.
    """
    return canonical(model, adapter) if rotates_stream(model, adapter, alignment) else model


def pretrained(
    model: PreTrainedModel, base: State, adapter: Adapter, alignment: Alignment
) -> Pretrained:
    """Returns what a fine-tune was before, in its class.

    Args:
        model: The fine-tune, as it came; left unchanged.
        base: Parameters of the pretrained model by the fine-tune's names; so far as it has them.
        adapter: Their family's table.
        alignment: Which maps are asked for.
    """
    whole = in_form(with_trunk(model, base), adapter, alignment)
    before = {name for name, _ in model.named_parameters()}

    def has(name: str) -> bool:  # a bias that the form added goes with its weight
        origin = name if name in before else f"{name.rpartition('.')[0]}.weight"
        return origin in base

    state = {name: tensor.detach() for name, tensor in whole.named_parameters() if has(name)}
    return Pretrained(whole, state)


def bring(
    model: PreTrainedModel,
    own: State,
    target: Pretrained,
    adapter: Adapter,
    inputs: Any,
    *,
    alignment: Alignment = "rotate",
    scaling: float = 1.0,
    rescale: bool = False,
    matching: Matching | None = None,
    **running: Any,
) -> Brought:
    """Returns a fine-tune of one pretrained model as a fine-tune of another, on unlabelled inputs.

    Args:
        model: The fine-tune, as it came; left unchanged.
        own: Parameters of what it was fine-tuned from, by its names; so far as that has them.
        target: The pretrained model to bring it to, see `pretrained`.
        adapter: Their family's table.
        inputs: A map-style data set of keyword arguments for the models.
        alignment: See `match_pretrained`.
        scaling: See `transported`; so is the next.
        rescale: See `scaling`.
        matching: The maps, where they are known; the models are not run then.
        **running: See `hf_zip.collect.collect`.

    Raises:
        HfZipError: There are no inputs.
    """
    before = pretrained(model, own, adapter, alignment)
    after = in_form(model, adapter, alignment)
    if matching is None:
        matching = match_pretrained(target, before, adapter, inputs, alignment, **running)
    moved = transported(
        {name: tensor.detach() for name, tensor in after.named_parameters()},
        before.state,
        target.state,
        merge_groups(after, adapter),
        matching,
        scaling,
        rescale,
    )
    return Brought(with_trunk(after, moved), matching)


def match_pretrained(
    target: Pretrained,
    own: Pretrained,
    adapter: Adapter,
    inputs: Any,
    alignment: Alignment = "rotate",
    **running: Any,
) -> Matching:
    """Returns the maps from the features of one pretrained model to those of another.

    Both run on the same unlabelled inputs. Features that neither writes by itself, such as those of
    a pooler that only fine-tunes have, stay where they are.

    Source: Theseus (https://arxiv.org/abs/2602.12952) for orthogonal Procrustes between what both
    see, TransFusion (https://arxiv.org/abs/2505.22697) for permutations with heads as wholes.
    Deviations: there is one map for all that carries the same features, so that the maps are
    symmetries of the whole model; permutations are told by activations, not by weights.

    Args:
        target: The one to map to.
        own: The one to map from.
        adapter: Their family's table.
        inputs: A map-style data set of keyword arguments for the models.
        alignment: "rotate" turns the stream where `rotates_stream` says so, and the features inside
            heads; "permute" only reorders.
        **running: See `hf_zip.collect.collect`.

    Returns:
        Maps by group, first of the target (the identity), then of the other.

    Raises:
        HfZipError: There are no inputs.
    """
    known = target.state.keys() & own.state.keys()
    groups = [
        group
        for group in merge_groups(target.model, adapter)
        if any(axis.parameter in known for axis in group.writers)
    ]
    found = group_covariances(groups, (target.model, own.model), inputs, **running)
    for ran in (target, own):
        ran.model.cpu()
    if alignment == "permute":
        return match(groups, found, 2, Plan())
    turned = rotates_stream(target.model, adapter, alignment)
    return match_rotated(groups, found, 2, stream="rotate" if turned else "permute")


@torch.no_grad()
def transported(
    state: State,
    own: State,
    target: State,
    groups: Sequence[MergeGroup],
    matching: Matching,
    scaling: float = 1.0,
    rescale: bool = False,
) -> dict[str, Tensor]:
    """Returns the parameters of a fine-tune of one pretrained model as those of one of another.

    What it added is conjugated by the maps, `T (W - W_own) T⁻¹` for a layer between two groups, and
    added to the target. Parameters that a base lacks, such as task heads, have no such difference
    and are rewritten whole, to read and write the target's features. The arithmetic is in float64.

    Args:
        state: Parameters of the fine-tune by name.
        own: Those of the pretrained model that it was fine-tuned from; so far as it has them.
        target: Those of the other one, likewise.
        groups: Their merge groups.
        matching: What `match_pretrained` found.
        scaling: Factor of what was added.
        rescale: Multiply it, parameter by parameter, by the norm of the target's parameter divided
            by that of the other's, where neither is zero.

    Source: Theseus (https://arxiv.org/abs/2602.12952), `τ' = T_out τ T_inᵀ`.
    """
    shared = [name for name in state if name in own and name in target]
    vectors = {name: tensor.double() for name, tensor in state.items()}
    vectors |= {name: vectors[name] - own[name].double() for name in shared}
    found = align(vectors, groups, matching.maps, 1)
    for name in shared:
        factor = scaling * (_ratio(target[name], own[name]) if rescale else 1.0)
        found[name] = target[name].double() + factor * found[name]
    return {name: tensor.to(state[name].dtype) for name, tensor in found.items()}


def _ratio(target: Tensor, own: Tensor) -> float:
    norms = [float(torch.linalg.vector_norm(tensor.double())) for tensor in (target, own)]
    return norms[0] / norms[1] if all(norms) else 1.0
