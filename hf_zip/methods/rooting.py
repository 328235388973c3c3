"""Rooting: models brought into the parameter space of one of them, then merged as siblings."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from transformers import PreTrainedModel

from hf_zip.adapters import Adapter
from hf_zip.align import State
from hf_zip.aligned import split_heads
from hf_zip.errors import HfZipError
from hf_zip.learned import learned
from hf_zip.method import Merged, MergeInputs, MergeMethod, Requires, WeightOptions
from hf_zip.methods import method_named, methods
from hf_zip.nested import run_nested
from hf_zip.plain import build
from hf_zip.products import products, total, verdict
from hf_zip.refit.walk import check_outputs, check_scores
from hf_zip.rooting.distil import Start, distil
from hf_zip.rooting.options import DistillTraining, RootingOptions
from hf_zip.rooting.root import Rooted, root_model
from hf_zip.support import support
from hf_zip.training.options import TrainingOptions
from hf_zip.training.trained import Trained

logger = logging.getLogger(__name__)

# What kept most (scripts/benchmark_rooting.py): layers that are fitted anew, for families that can
# be; else, with its options, beside a root that is one of the models, whose own task vector is
# zero; and of models that all were rooted elsewhere.
_REFIT = "zipfit"
_BEST: Mapping[bool, tuple[str, Mapping[str, Any]]] = {
    True: ("regmean", {"alpha": 1.0}),
    False: ("iso_c", {}),
}


@dataclass(frozen=True)
class RootingMergeOptions(RootingOptions):
    """How models are rooted, and merged then.

    Args:
        root: Position of the root among the models, from 0 on; or "base", the base model of the
            recipe, which is no part of the merge itself; or "merge", a merge of the models.
        root_method: The method that makes this merge.
        root_parameters: Its options.
        then: The method that merges them once they are siblings, or "zipfit", which weighs all
            models alike; "best" is "zipfit" for families that it knows, for others `regmean` with
            `alpha: 1.0` where the root is one of the models, else `iso_c`.
        then_parameters: Its options.
        second_stage: How the merge is trained on what all models do, from its own weights; left
            out, it is not. What is compared is what rootings compare.
    """

    root: int | Literal["base", "merge"] = 0
    root_method: str = "zipfit"
    root_parameters: Mapping[str, Any] = field(default_factory=dict)
    then: str = "best"
    then_parameters: Mapping[str, Any] = field(default_factory=dict)
    second_stage: DistillTraining | None = None

    def __post_init__(self) -> None:
        """Checks the ranges, and the method."""
        super().__post_init__()
        if self.then == "best":
            if self.then_parameters:
                raise HfZipError(
                    "then_parameters are given, but then is best, which depends on the models; "
                    "name the method that they are of"
                )
        else:
            self._check_then()
        if self.root != "merge":
            if self.root_parameters:
                raise HfZipError(
                    f"root_parameters are given, but root is {self.root}, which is not merged; "
                    "leave them out, or set root: merge"
                )
        elif method_named(self.root_method).per_task:
            raise HfZipError(
                f"root_method is {self.root_method!r}, which keeps weights of every task; a root "
                "is one model, so name a method that makes one, such as 'zipfit'"
            )
        self.root_options()

    def _check_then(self) -> None:
        method = method_named(self.then)
        if not method.requires.shared_init and self.then != _REFIT:
            known = ", ".join(repr(n) for n, own in methods().items() if own.requires.shared_init)
            raise HfZipError(
                f"then is {self.then!r}, which is not for models that share their initialisation, "
                f"as rooted ones do; use '{_REFIT}' or one of {known}"
            )
        build(method.options, self.then_parameters, "parameters.then_parameters")
        if method.per_task and self.second_stage is not None:
            raise HfZipError(
                f"second_stage trains one model for all tasks, but then is {self.then!r}, which "
                "keeps weights of every task; leave second_stage out, or use another method"
            )

    def settled(self, model: PreTrainedModel, adapter: Adapter | None) -> "RootingMergeOptions":
        """Returns the same with the method that `best` stands for.

        Args:
            model: One of the models.
            adapter: Their family's table, if there is one.
        """
        if self.then != "best":
            return self
        fitted = adapter is not None and _can_be_fitted(model, adapter)
        then, own = (_REFIT, {}) if fitted else _BEST[isinstance(self.root, int)]
        return replace(self, then=then, then_parameters=own)

    def root_options(self) -> Any:
        """Returns the options of the method that makes the root."""
        method = method_named(self.root_method)
        return build(method.options, self.root_parameters, "parameters.root_parameters")

    @property
    def first(self) -> MergeMethod | None:
        """The method that makes the root, with what it needs; nothing where the root is known."""
        if self.root != "merge":
            return None
        return method_named(self.root_method).with_options(self.root_options())

    def needs(self, requires: Requires) -> Requires:
        """Returns what is needed with these options.

        A base, if it is the root, of any weights; the bases that task vectors are brought from; and
        models of the form that `then` needs.
        """
        requires = replace(requires, own_bases=self.start == "transport")
        if self.then == _REFIT:
            requires = requires.after(method_named(self.then).requires)
        return replace(requires, base=True, any_base=True) if self.root == "base" else requires


def run(inputs: MergeInputs, options: RootingMergeOptions) -> Merged:
    """Returns a merge of siblings: of the root, and of its copies that learnt what others do.

    A model whose weights are alike to the root's already is a sibling and stays as it is. A method
    that needs a base gets the root for one, so the root's own task vector is zero there.

    Source: GAN Cocktail (https://arxiv.org/abs/2106.03847), there for generators and their mean,
    which its second stage trains on what the models generate.
    """
    options = options.settled(inputs.runtime.models[0], inputs.runtime.table)
    if options.then == _REFIT and len(set(inputs.weights)) > 1:
        logger.warning(
            "then is %r, which weighs all models alike: their weights (%s) count in nothing but a "
            "second stage",
            _REFIT,
            ", ".join(map(str, inputs.weights)),
        )
    method, models = method_named(options.then), inputs.runtime.models
    _, trunks = split_heads(inputs, inputs.states)
    root = _root(inputs, options, trunks)
    elsewhere = [
        position != options.root and (bool(root.config) or not _is_sibling(root.trunk, trunk))
        for position, trunk in enumerate(trunks)
    ]
    if options.start == "transport":
        _check_own_bases(inputs, elsewhere, root)
    found: list[Rooted | None] = []
    for position, model in enumerate(models):
        brought = _rooted(inputs, options, position, root) if elsewhere[position] else None
        found.append(brought)
        model.cpu()
    alike = tuple(own.model if own else m for own, m in zip(found, models, strict=True))
    own = build(method.options, options.then_parameters, "parameters.then_parameters")
    siblings = replace(
        inputs,
        states=tuple(learned(model) for model in alike),
        groups=support(alike[0]).groups if root.config else inputs.groups,
        base=root.trunk if method.needs_base(own) else None,
        runtime=replace(inputs.runtime, models=alike, whole=()),
    )
    merged = run_nested(method, siblings, own)
    rooted = {position: own for position, own in enumerate(found) if own is not None}
    merged = replace(merged, config={**root.config, **merged.config})
    if options.second_stage is not None:
        merged = _trained_further(inputs, options, options.second_stage, merged)
    return replace(
        merged,
        aligned=(),
        provenance={
            **merged.provenance,
            "trainings": (
                *root.trainings,
                *(own.trained for own in rooted.values()),
                *merged.provenance.get("trainings", ()),
            ),
            "barriers": {position: own.barrier for position, own in rooted.items()},
        },
    )


@dataclass(frozen=True)
class _Root:
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


def _root(inputs: MergeInputs, options: RootingMergeOptions, trunks: Sequence[State]) -> _Root:
    if options.root == "base":
        return _Root(inputs.base or {})
    if options.first is not None:
        made = run_nested(options.first, inputs, options.root_options())
        statistics = {name for name, _ in inputs.runtime.models[0].named_buffers()}
        trunk = {name: x.cpu() for name, x in made.state.items() if name not in statistics}
        return _Root(trunk, made.heads, made.config, made.provenance.get("trainings", ()))
    position = int(options.root)
    if not 0 <= position < len(trunks):
        raise HfZipError(
            f"root is {position}; it should be from 0 to {len(trunks) - 1}, base with a "
            "base_model, or merge"
        )
    names = {name for name, _ in inputs.runtime.models[0].named_parameters()}
    return _Root({name: x for name, x in trunks[position].items() if name in names})


def _rooted(
    inputs: MergeInputs, options: RootingMergeOptions, position: int, root: _Root
) -> Rooted:
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


def _check_own_bases(inputs: MergeInputs, elsewhere: Sequence[bool], root: "_Root") -> None:
    """Checks, before anything is trained, that models can begin as their transports."""
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


def _trained_further(
    inputs: MergeInputs, options: RootingOptions, training: TrainingOptions, merged: Merged
) -> Merged:
    """The merge after it has learnt from the models as they were before they were rooted."""
    runtime = inputs.runtime
    start = Start(merged.state, merged.heads, merged.config)
    found, trained = distil(
        runtime.models,
        runtime.feeds,
        inputs.weights,
        start,
        options,
        training,
        runtime.accelerator,
        inputs.seed,
        "second stage",
        runtime.progress,
    )
    trainings = (*merged.provenance.get("trainings", ()), trained)
    return replace(
        merged,
        state=dict(found.trunk),
        heads=tuple(map(dict, found.heads)),
        provenance={**merged.provenance, "trainings": trainings},
    )


def _can_be_fitted(model: PreTrainedModel, adapter: Adapter) -> bool:
    """Whether layers of a family's models can be fitted anew."""
    try:
        method_named(_REFIT).requires.check_form(adapter)
        check_scores(model, adapter)
        check_outputs(model, adapter)
    except HfZipError:
        return False
    return True


def _is_sibling(root: Mapping[str, Any], trunk: Mapping[str, Any]) -> bool:
    """Whether weights are as alike as those of fine-tunes of one model."""
    wide = [name for name, tensor in root.items() if tensor.dim() >= 2]
    if not wide:
        return False
    alike = total(own.weights for own in products([root, trunk], {}, wide).values())
    return verdict(alike.cosine(0, 1)) == "shared"


ENTRY = MergeMethod(
    name="rooting",
    title="Models trained into the parameter space of one of them, then merged as its fine-tunes",
    reference="https://arxiv.org/abs/2106.03847",
    requires=Requires(calibration=True, own_inputs=True, elementwise=True),
    run=run,
    options=RootingMergeOptions,
    model_options=WeightOptions,
)
