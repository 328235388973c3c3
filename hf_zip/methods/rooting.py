"""Rooting: models brought into the parameter space of one of them, then merged as siblings."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from transformers import PreTrainedModel

from hf_zip.adapters import Adapter
from hf_zip.aligned import split_heads
from hf_zip.errors import HfZipError
from hf_zip.learned import learned
from hf_zip.method import MergeInputs, MergeMethod, Requires, WeightOptions
from hf_zip.methods import method_named, methods
from hf_zip.nested import run_nested
from hf_zip.outcome import Merged
from hf_zip.plain import build
from hf_zip.refit.walk import check_outputs, check_scores
from hf_zip.rooting.options import DistillTraining, RootingOptions
from hf_zip.rooting.root import Rooted
from hf_zip.roots import check_own_bases, find_root, is_sibling, rooted, trained_further
from hf_zip.support import support

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
    root = find_root(inputs, trunks, options.root, options.first, options.root_options())
    elsewhere = [
        position != options.root and (bool(root.config) or not is_sibling(root.trunk, trunk))
        for position, trunk in enumerate(trunks)
    ]
    if options.start == "transport":
        check_own_bases(inputs, elsewhere, root)
    found: list[Rooted | None] = []
    for position, model in enumerate(models):
        found.append(rooted(inputs, options, position, root) if elsewhere[position] else None)
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
    by_position = {position: own for position, own in enumerate(found) if own is not None}
    merged = replace(merged, config={**root.config, **merged.config})
    if options.second_stage is not None:
        merged = trained_further(inputs, options, options.second_stage, merged)
    return replace(
        merged,
        aligned=(),
        provenance={
            **merged.provenance,
            "trainings": (
                *root.trainings,
                *(own.trained for own in by_position.values()),
                *merged.provenance.get("trainings", ()),
            ),
            "barriers": {position: own.barrier for position, own in by_position.items()},
        },
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


ENTRY = MergeMethod(
    name="rooting",
    title="Models trained into the parameter space of one of them, then merged as its fine-tunes",
    reference="https://arxiv.org/abs/2106.03847",
    requires=Requires(calibration=True, own_inputs=True, elementwise=True),
    run=run,
    options=RootingMergeOptions,
    model_options=WeightOptions,
)
