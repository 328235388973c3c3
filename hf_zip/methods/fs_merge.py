"""FS-Merge: maps between the features of frozen models, learnt and then folded into one model."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from hf_zip.align import State, align, mean
from hf_zip.aligned import check_refit, fit_after, split_heads
from hf_zip.covariances import group_covariances
from hf_zip.errors import HfZipError
from hf_zip.folding.common import in_stream_of
from hf_zip.folding.learning import Folding, Lesson, folding_loss
from hf_zip.folding.reading import Reading
from hf_zip.folding.supernet import SuperNet
from hf_zip.groups import head_names
from hf_zip.kinds import head_kind
from hf_zip.match import Plan, match
from hf_zip.method import MergeInputs, MergeMethod, Requires, Runtime
from hf_zip.outcome import Merged
from hf_zip.ranges import check_between
from hf_zip.refit.head import with_trunk
from hf_zip.rooting.first_fit import FirstFit, first_fit
from hf_zip.rooting.options import DistillTraining, LessonOptions
from hf_zip.rooting.streams import checked_blocks
from hf_zip.side_by_side import SideBySide, distinct_sets
from hf_zip.training.learner import Learner
from hf_zip.undecided import check_recomputed, identity_of
from hf_zip.weighing.feed import Feed

# Options of which the training does not depend, or which it tells itself.
_FREE = ("training", "refit")


@dataclass(frozen=True)
class FoldTraining(DistillTraining):
    """`DistillTraining` with the learning rate of FS-Merge's maps."""

    learning_rate: float = 1e-3


@dataclass(frozen=True)
class FsMergeOptions(LessonOptions):
    """Where the folded model begins, and how it learns: see also `LessonOptions`.

    Args:
        start: What it begins with: "permute", the mean of all models after their features were
            matched one to one, as by the method of this name; "average", their mean as they are;
            or the position of one model.
        rank: Of the thin matrices that are learnt of each map beside a diagonal, at least 0; 0
            learns whole matrices.
        training: How to train, see `hf_zip.training.options`.
        refit: "head" fits the task heads anew, by least squares on the calibration inputs.
    """

    start: int | Literal["permute", "average"] = "permute"
    rank: int = 12
    training: FoldTraining = field(default=FoldTraining())
    refit: Literal["none", "head"] = "none"

    def __post_init__(self) -> None:
        """Checks the ranges."""
        super().__post_init__()
        check_between("rank", self.rank, 0, float("inf"))
        check_recomputed("fs_merge", self.training)


def run(inputs: MergeInputs, options: FsMergeOptions) -> Merged:
    """Returns one model folded from all, by maps that were learnt to give each model's features.

    Every parameter is the sum of `M_k W_k U_k` over the models, see `SuperNet`. The models stay as
    they are; what is learnt are corrections of the maps, from what each model gives for its inputs:
    its features after the blocks, in units of their variance, and its head's answers. Every head
    has an unmerge map as well, so tasks keep their labels.

    Normalisations are writers: their gains and biases receive merge maps, which is no exact
    rewrite. Word embeddings that a head is tied to have the merge map alone.

    Source: FS-Merge (https://arxiv.org/abs/2410.01483), whose maps are a diagonal plus a rank of 12
    and begin with the first model, and which learns from features alone. Deviations: it begins with
    the mean of permuted models; answers are compared too; models beside the one that `start` names
    are told from its features by least squares before anything is learnt, and so are the heads;
    features that are compared are read by maps of their own, which have a bias and are not folded;
    and there is no weight decay.
    """
    from hf_zip.training.train import train  # whose transformers.Trainer takes seconds to import

    check_refit(inputs, options.refit)
    runtime = inputs.runtime
    for model in runtime.models:
        model.to(runtime.accelerator.device).eval()
    sets, places = distinct_sets(runtime.feeds)
    lessons = [
        Lesson(model, place, head_kind(model))
        for model, place in zip(runtime.models, places, strict=True)
    ]
    blocks = _blocks(lessons, inputs, options)
    module = _start(inputs, blocks, options)
    weights = (options.feature_weight, options.answer_weight, options.temperature)
    told = {name: value for name, value in asdict(options).items() if name not in _FREE}
    trained = train(
        Learner(module, folding_loss(lessons, blocks, *weights)),
        SideBySide(sets),
        options.training,
        inputs.seed,
        identity=identity_of(inputs, options.training, told),
        description="maps",
        progress=runtime.progress,
    )
    with torch.no_grad():
        trunk = _like(inputs.states[0], module.net.folded())
        heads = tuple(_like(own, module.net.head(k)) for k, own in enumerate(inputs.states))
    merged = fit_after(inputs, trunk, heads, options.refit)
    return replace(merged, provenance={"trainings": (trained,)})


def _blocks(
    lessons: Sequence[Lesson], inputs: MergeInputs, options: FsMergeOptions
) -> tuple[int, ...]:
    """After which blocks features are compared, once it is known that there is what to compare."""
    if options.feature_weight:
        found: tuple[int, ...] = ()
        for lesson, feed in zip(lessons, inputs.runtime.feeds, strict=True):
            batch = feed.one(inputs.runtime.accelerator)
            found = checked_blocks(lessons[0].model, lesson.model, batch, options.blocks)
        return found
    for position, lesson in enumerate(lessons):
        if not lesson.answers:
            raise HfZipError(
                f"the head of model {position} is of kind {lesson.kind} or stays apart "
                "from the trunk, so its answers cannot be compared, and feature_weight is 0; give "
                "the features a weight"
            )
    return ()


def _start(inputs: MergeInputs, blocks: Sequence[int], options: FsMergeOptions) -> Folding:
    """What is to be learnt, where it begins."""
    runtime, generator = inputs.runtime, torch.Generator().manual_seed(inputs.seed)
    states, shares = _begun(inputs, options)
    _, trunks = split_heads(inputs, states)
    trunk = mean(trunks, shares)
    fitted = _fitted(inputs, trunk, shares, blocks, options)
    reading = None
    if options.feature_weight:
        reading = Reading([own.maps for own in fitted], options.rank, generator)
    precise = torch.promote_types(runtime.models[0].dtype, torch.float32)
    device = runtime.accelerator.device
    whole = [
        {name: tensor.to(device, precise) for name, tensor in {**state, **own.heads}.items()}
        for state, own in zip(states, fitted, strict=True)
    ]
    net = SuperNet(whole, inputs.groups, inputs.heads, shares, options.rank, generator)
    return Folding(net, reading).to(device, precise)


def _begun(
    inputs: MergeInputs, options: FsMergeOptions
) -> tuple[Sequence[State], tuple[float, ...]]:
    """The parameters of all models in common features, and the share of each in the first mean."""
    count = len(inputs.states)
    if isinstance(options.start, int):
        first = options.start
        if not 0 <= first < count:
            raise HfZipError(
                f"start is {first}; it should be from 0 to {count - 1}, 'average' or 'permute'"
            )
        states = [
            state if position == first else _in_stream(inputs, first, position, options)
            for position, state in enumerate(inputs.states)
        ]
        return states, tuple(float(k == first) for k in range(count))
    shares = (1 / count,) * count
    if options.start == "average":
        return inputs.states, shares
    runtime = inputs.runtime
    given = (inputs.groups, runtime.models, runtime.calibration)
    found = group_covariances(*given, **runtime.running)
    matching = match(inputs.groups, found, count, Plan(stream="auto"))
    aligned = [
        align(state, inputs.groups, matching.maps, model)
        for model, state in enumerate(inputs.states)
    ]
    return aligned, shares


def _in_stream(inputs: MergeInputs, first: int, position: int, options: FsMergeOptions) -> State:
    """The parameters of a model, told from the features of the one to begin with."""
    runtime, feed = inputs.runtime, inputs.runtime.feeds[position]
    return in_stream_of(
        runtime.models[first],
        runtime.models[position],
        inputs.states[position],
        inputs.groups,
        feed.inputs,
        options.penalty,
        *_running(runtime, feed),
    )


def _fitted(
    inputs: MergeInputs,
    trunk: State,
    shares: Sequence[float],
    blocks: Sequence[int],
    options: FsMergeOptions,
) -> list[FirstFit]:
    """For each model the maps to its features from those that the trunk begins with, and a head.

    A model that is all that the trunk begins as, or has no head of its own, keeps what it has.
    """
    runtime, found = inputs.runtime, []
    student = with_trunk(runtime.models[0], trunk)
    for model, feed, share in zip(runtime.models, runtime.feeds, shares, strict=True):
        fits_head = share < 1 and bool(inputs.heads)
        names = head_names(model, runtime.adapter) if fits_head else ()
        given = (blocks, names, options.penalty, *_running(runtime, feed))
        found.append(first_fit(student, model, feed.inputs, *given))
    return found


def _running(runtime: Runtime, feed: Feed) -> tuple[int, Any, bool]:
    return feed.batch_size, runtime.accelerator, runtime.progress


def _like(wanted: State, found: State) -> dict[str, Tensor]:
    """Tensors where and as precise as the sources' are."""
    return {name: tensor.to(wanted[name]) for name, tensor in found.items()}


ENTRY = MergeMethod(
    name="fs_merge",
    title="FS-Merge: all models folded into one by maps that learn to give their features",
    reference="https://arxiv.org/abs/2410.01483",
    requires=Requires(calibration=True, own_inputs=True, one_tower=True),
    run=run,
    options=FsMergeOptions,
)
