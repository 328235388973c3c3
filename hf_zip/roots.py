"""What models are rooted in, their copies of it, and what is taught by all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from hf_zip.align import State
from hf_zip.errors import HfZipError
from hf_zip.method import MergeInputs, MergeMethod
from hf_zip.nested import run_nested
from hf_zip.outcome import Merged
from hf_zip.products import products, total, verdict
from hf_zip.rooting.distil import Start, distil
from hf_zip.rooting.options import LessonOptions, RootingOptions
from hf_zip.rooting.root import Rooted, root_model
from hf_zip.training.options import TrainingOptions
from hf_zip.training.trained import Trained


@dataclass(frozen=True)
class Root:
    """What models are rooted in.

    Args:
        trunk: Its parameters, heads left out.
        heads: Of each model the head that reads its features; empty where that is to be fitted.
        config: Entries of its config that differ from the models'.
        trainings: What was trained to make it.
    """

    trunk: State
    heads: tuple[State, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    trainings: tuple[Trained, ...] = ()


def find_root(
    inputs: MergeInputs,
    trunks: Sequence[State],
    root: int | Literal["base", "merge"],
    first: MergeMethod | None,
    first_options: Any,
) -> Root:
    """Returns what models are to be rooted in.

    Args:
        inputs: What the merge works on.
        trunks: The models' parameters, heads left out.
        root: Position of the root among the models, "base" or "merge".
        first: The method that makes the merge which is the root; nothing where it is none.
        first_options: Its options.

    Raises:
        HfZipError: There is no model at that position.
    """
    if root == "base":
        return Root(inputs.base or {})
    if first is not None:
        made = run_nested(first, inputs, first_options)
        statistics = {name for name, _ in inputs.runtime.models[0].named_buffers()}
        trunk = {name: x.cpu() for name, x in made.state.items() if name not in statistics}
        return Root(trunk, made.heads, made.config, made.provenance.get("trainings", ()))
    position = int(root)
    if not 0 <= position < len(trunks):
        raise HfZipError(
            f"root is {position}; it should be from 0 to {len(trunks) - 1}, base with a "
            "base_model, or merge"
        )
    names = {name for name, _ in inputs.runtime.models[0].named_parameters()}
    return Root({name: x for name, x in trunks[position].items() if name in names})


def rooted(inputs: MergeInputs, options: RootingOptions, position: int, root: Root) -> Rooted:
    """Returns a copy of the root that learnt what a model does.

    Args:
        inputs: What the merge works on.
        options: How to root; each model has a folder of its own among the checkpoints.
        position: Which model.
        root: Its root.
    """
    runtime, training = inputs.runtime, options.training
    feed = runtime.feeds[position]
    if training.checkpoints is not None:  # a folder for each model
        folder = f"{training.checkpoints}/model_{position}"
        options = replace(options, training=replace(training, checkpoints=folder))
    return root_model(
        runtime.models[position],
        root.trunk,
        feed.inputs,
        options,
        feed.batch_size,
        runtime.accelerator,
        runtime.table,
        inputs.seed,
        f"rooting of model {position}",
        runtime.progress,
        root.heads[position] if root.heads else None,
        root.config,
        inputs.own_bases[position] if inputs.own_bases else None,
    )


def check_own_bases(inputs: MergeInputs, elsewhere: Sequence[bool], root: Root) -> None:
    """Checks, before anything is trained, that models can begin as their transports.

    Args:
        inputs: What the merge works on.
        elsewhere: Of each model whether it is rooted.
        root: Their root.

    Raises:
        HfZipError: A model has no base of its own, or the root is of another shape.
    """
    if root.config:
        raise HfZipError(
            f"start is 'transport', but the root has {', '.join(root.config)} of its own, and only "
            "to models of the same shape can something be brought; leave start or root out"
        )
    bases = inputs.own_bases or (None,) * len(elsewhere)
    lacking = [k for k, own in enumerate(bases) if own is None and elsewhere[k]]
    if lacking:
        raise HfZipError(
            f"start is 'transport', but models.{lacking[0]} has no base_model of its own, so what "
            "it learnt there is not known; name it (--own-base), or leave start out"
        )


def taught(
    inputs: MergeInputs,
    start: Start,
    options: LessonOptions,
    training: TrainingOptions,
    name: str,
) -> tuple[Start, Trained]:
    """Returns one model that was trained to do what all do, and what is known of its training.

    Args:
        inputs: What the merge works on.
        start: What it begins as.
        options: What is compared.
        training: How to train.
        name: What the training is called.
    """
    runtime = inputs.runtime
    return distil(
        runtime.models,
        runtime.feeds,
        inputs.weights,
        start,
        options,
        training,
        runtime.accelerator,
        inputs.seed,
        name,
        runtime.progress,
    )


def trained_further(
    inputs: MergeInputs, options: RootingOptions, training: TrainingOptions, merged: Merged
) -> Merged:
    """Returns a merge after it has learnt from the models as they were before they were rooted.

    Args:
        inputs: What the merge works on.
        options: What is compared.
        training: How to train.
        merged: The merge of the rooted models.
    """
    start = Start(merged.state, merged.heads, merged.config)
    found, trained = taught(inputs, start, options, training, "second stage")
    trainings = (*merged.provenance.get("trainings", ()), trained)
    return replace(
        merged,
        state=dict(found.trunk),
        heads=tuple(map(dict, found.heads)),
        provenance={**merged.provenance, "trainings": trainings},
    )


def is_sibling(root: State, trunk: State) -> bool:
    """Tells whether weights are as alike as those of fine-tunes of one model.

    Args:
        root: Those of the root, heads left out.
        trunk: Those of a model.
    """
    wide = [name for name, tensor in root.items() if tensor.dim() >= 2]
    if not wide:
        return False
    alike = total(own.weights for own in products([root, trunk], {}, wide).values())
    return verdict(alike.cosine(0, 1)) == "shared"
