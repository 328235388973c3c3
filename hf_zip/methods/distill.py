"""Distillation of all models into one student: the unlabelled inputs of rooting, one training."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_zip.aligned import split_heads
from hf_zip.errors import HfZipError
from hf_zip.method import MergeInputs, MergeMethod, Requires, WeightOptions
from hf_zip.methods import method_named
from hf_zip.nested import run_nested
from hf_zip.outcome import Merged
from hf_zip.plain import build
from hf_zip.rooting.distil import Start
from hf_zip.rooting.options import DistillTraining, LessonOptions
from hf_zip.roots import taught


@dataclass(frozen=True)
class DistillOptions(LessonOptions):
    """What one student learns of all models: see also `LessonOptions`.

    Args:
        start: What the student begins as: the position of a model, from 0 on, or the name of a
            method that merges these models.
        start_parameters: The options of that method.
        training: How to train, see `hf_zip.training.options`.
    """

    start: int | str = 0
    start_parameters: Mapping[str, Any] = field(default_factory=dict)
    training: DistillTraining = field(default=DistillTraining())

    def __post_init__(self) -> None:
        """Checks the ranges, and the method."""
        super().__post_init__()
        if isinstance(self.start, int):
            if self.start_parameters:
                raise HfZipError(
                    f"start_parameters are given, but start is {self.start}, a model; leave them "
                    "out, or name a merge method as start"
                )
            return
        if method_named(self.start).per_task:
            raise HfZipError(
                f"start is {self.start!r}, which keeps weights of every task; a student begins as "
                "one model, so name a method that makes one, such as 'zipfit'"
            )
        self.start_options()

    def start_options(self) -> Any:
        """Returns the options of the method that the student begins with."""
        method = method_named(str(self.start))
        return build(method.options, self.start_parameters, "parameters.start_parameters")

    @property
    def first(self) -> MergeMethod | None:
        """The method that is run first, with what it needs."""
        if isinstance(self.start, int):
            return None
        return method_named(self.start).with_options(self.start_options())


def run(inputs: MergeInputs, options: DistillOptions) -> Merged:
    """Returns one model that was trained to do what all do, with a head for each of them.

    Source: distillation (https://arxiv.org/abs/1503.02531); of several teachers into one student
    Shen et al. (https://arxiv.org/abs/1811.02796), there layer by layer. Features are compared as
    by FitNets (https://arxiv.org/abs/1412.6550), through maps that are fitted at the start.
    """
    first = options.first
    trainings: tuple[Any, ...] = ()
    if first is None:
        start = _of_source(inputs, int(options.start))
    else:
        merged = run_nested(first, inputs, options.start_options())
        trainings = merged.provenance.get("trainings", ())
        start = Start(merged.state, merged.heads, merged.config)
    found, trained = taught(inputs, start, options, options.training, "distillation")
    return Merged(
        state=dict(found.trunk),
        heads=tuple(map(dict, found.heads)),
        provenance={"trainings": (*trainings, trained)},
        config=found.config,
        weights=inputs.weights,
    )


def _of_source(inputs: MergeInputs, position: int) -> Start:
    """The trunk of a model, its head, and those of the others, which are to be fitted to it."""
    runtime = inputs.runtime
    if not 0 <= position < len(runtime.models):
        raise HfZipError(
            f"start is {position}; it should be from 0 to {len(runtime.models) - 1}, or the name "
            "of a merge method"
        )
    heads, trunks = split_heads(inputs, inputs.states)
    known = runtime.table is not None and inputs.heads
    fitted = [k for k in range(len(heads)) if k != position] if known else []
    return Start(trunks[position], tuple(heads), fitted=tuple(fitted))


ENTRY = MergeMethod(
    name="distill",
    title="One student that learns what all models do with unlabelled inputs",
    reference="https://arxiv.org/abs/1503.02531",
    requires=Requires(calibration=True, own_inputs=True, elementwise=True),
    run=run,
    options=DistillOptions,
    model_options=WeightOptions,
)
