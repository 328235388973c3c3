"""What a merge method is: what it needs, what it works on, and what it returns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor
from transformers import PreTrainedModel

from hf_zip.adapters import Adapter
from hf_zip.align import State
from hf_zip.canonical import check_canonical, obstacle
from hf_zip.combining.combination import Combination
from hf_zip.errors import HfZipError
from hf_zip.groups import MergeGroup
from hf_zip.outcome import Merged
from hf_zip.refit.post_norm import check_post_norm, post_norm_obstacle
from hf_zip.varying import Varied
from hf_zip.weighing.feed import Feed


@dataclass(frozen=True)
class Requires:
    """What a method needs beside the models.

    Args:
        base: A common base model.
        own_bases: A model may have a base of its own, from which its task vector is brought.
        any_base: It may be any model of the same shape, not only what the others came from.
        calibration: Unlabelled inputs.
        own_inputs: Each model is run by itself, on inputs of its own where it has some.
        covariances: The covariance of every merge group on them.
        shared_init: Models that were fine-tuned from one initialisation.
        canonical: Models that have a canonical form, `hf_zip.canonical`.
        rotated: Streams that can be rotated in it without loss.
        or_post_norm: Post-norm models, which have none, will do as well.
        one_tower: Models with one stack of blocks.
        plain_scores: Attention that adds nothing to the products of queries and keys.
        elementwise: Nothing but parameters of the same names and shapes, so that models of any
            class will do, with a table of their family or without.
        models: So many of them; left out, any number.
    """

    base: bool = False
    own_bases: bool = False
    any_base: bool = False
    calibration: bool = False
    own_inputs: bool = False
    covariances: bool = False
    shared_init: bool = False
    canonical: bool = False
    rotated: bool = False
    or_post_norm: bool = False
    one_tower: bool = False
    plain_scores: bool = False
    elementwise: bool = False
    models: int | None = None

    def after(self, first: "Requires") -> "Requires":
        """Returns what a method needs that runs another one first, and gathers what that needs.

        Args:
            first: What the other one needs.
        """
        forms = [own for own in (self, first) if own.canonical]
        return replace(
            self,
            base=self.base or first.base,
            own_bases=self.own_bases or first.own_bases,
            calibration=self.calibration or first.calibration,
            shared_init=self.shared_init or first.shared_init,
            canonical=bool(forms),
            rotated=self.rotated or first.rotated,
            or_post_norm=bool(forms) and all(own.or_post_norm for own in forms),
            plain_scores=self.plain_scores or first.plain_scores,
            elementwise=self.elementwise and first.elementwise,
            models=first.models,
        )

    def form_obstacle(self, adapter: Adapter) -> str:
        """Returns why a family's models lack the form that is needed; nothing if they have it."""
        if self.one_tower and adapter.towers:
            return (
                f"models of {adapter.name!r} have {len(adapter.towers)} towers "
                f"({', '.join(adapter.towers)}), and features are compared after the blocks of one"
            )
        if self.or_post_norm and not adapter.pre_norm:
            return post_norm_obstacle(adapter)
        return obstacle(adapter, self.rotated) if self.canonical else ""

    def check_form(self, adapter: Adapter) -> None:
        """Checks that a family's models have the form that is needed.

        Raises:
            HfZipError: They have not.
        """
        if self.or_post_norm and not adapter.pre_norm:
            check_post_norm(adapter)
        elif self.canonical:
            check_canonical(adapter, self.rotated)
        elif self.form_obstacle(adapter):
            raise HfZipError(f"{self.form_obstacle(adapter)}; use 'permute' or 'zipit'")


@dataclass(frozen=True)
class Runtime:
    """For methods that run the models themselves.

    Args:
        models: The sources; they are to be left unchanged.
        table: Their family's table; nothing for models that only elementwise methods merge.
        calibration: A map-style data set of keyword arguments for the models, if there is one.
        batch_size: Inputs per forward.
        accelerator: The `accelerate.Accelerator` to run under.
        progress: Show progress bars, on the main process.
        own: The inputs of each model's own, nothing for models without; empty if none has any.
        whole: The sources with their heads, where `models` are trunks that share their parameters.
    """

    models: tuple[PreTrainedModel, ...]
    table: Adapter | None
    calibration: Any
    batch_size: int
    accelerator: Any
    progress: bool
    own: tuple[Feed | None, ...] = ()
    whole: tuple[PreTrainedModel, ...] = ()

    @property
    def feeds(self) -> tuple[Feed, ...]:
        """What each model runs on by itself: its own inputs, or those of all."""
        shared = Feed(self.calibration, self.batch_size)
        return tuple(own or shared for own in self.own or (None,) * len(self.models))

    @property
    def running(self) -> dict[str, Any]:
        """Arguments by name of whatever runs the models."""
        return {
            "batch_size": self.batch_size,
            "accelerator": self.accelerator,
            "progress": self.progress,
        }

    @property
    def adapter(self) -> Adapter:
        """The table, for what cannot do without.

        Raises:
            HfZipError: There is none.
        """
        if self.table is None:
            raise HfZipError(
                f"{type(self.models[0]).__name__} has no table that says what its features and "
                "blocks are, so they cannot be shared in part, swept over or fitted anew"
            )
        return self.table


@dataclass(frozen=True)
class MergeInputs:
    """What a method works on.

    Args:
        states: Parameters of each model by name, each tied parameter once, and running statistics.
        groups: The merge groups of the architecture; none for models without a table.
        heads: Names of the linear layers that make a task head; they are never averaged here.
        runtime: The models themselves and what they run on.
        covariances: For every group name, one covariance per tap over the features of all models
            side by side; empty unless the method requires calibration.
        model_options: The options of each model.
        base: Parameters of the model that they were fine-tuned from, by the names that they have in
            the first; those that it lacks, and heads, are left out. Nothing unless the method
            requires it.
        own_bases: The same of each model's own base, nothing for models without; empty if none has
            any.
        seed: Decides every random choice.
        varied: Of parameters by name, the values that they have of options that vary; nothing where
            none does. The options themselves then hold the last value of each.
    """

    states: tuple[State, ...]
    groups: tuple[MergeGroup, ...]
    heads: tuple[str, ...]
    runtime: Runtime
    covariances: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    model_options: tuple[Any, ...] = ()
    base: State | None = None
    own_bases: tuple[State | None, ...] = ()
    seed: int = 0
    varied: Mapping[str, Varied] = field(default_factory=dict)

    @property
    def weights(self) -> tuple[float, ...]:
        """Share of each model in a mean, for methods whose models have `WeightOptions`.

        Weights that vary are those of the task head, or else the last of each.
        """
        models = self.model_options
        head = self.varied.get(f"{self.heads[0]}.weight") if self.heads else None
        return tuple(own.weight for own in (models if head is None else head.of_models(models)))


@dataclass(frozen=True)
class NoOptions:
    """A method, or its models, without options."""


@dataclass(frozen=True)
class WeightOptions:
    """Options of one model.

    Args:
        weight: Share of this model in a mean, where the weights are divided by their sum; in a sum
            the factor of its task vector. Left out, a merge weighs as much as its sources together,
            and any other model 1.
    """

    weight: float = 1.0


# Whether a method that can do without the base takes parameters or what was added to it.
Origin = Literal["zero", "base"]


@dataclass(frozen=True)
class MergeMethod:
    """One way to merge.

    Args:
        name: What a recipe calls it.
        title: One line for tables and cards.
        reference: The paper, as a link; empty where there is none.
        requires: What it needs.
        run: Merges.
        options: A frozen dataclass of the method's options, with their defaults.
        model_options: The same for the options that each model may have.
        exact: Whether it leaves features in place or only permutes or rotates them: then each of
            `Merged.aligned` computes what its source does.
        combination: What becomes of one parameter, for methods that need one at a time.
        per_task: Whether something is kept of every model, so that the merge is a model of hf_zip's
            own, in which every task has weights of its own.
    """

    name: str
    title: str
    reference: str
    requires: Requires
    run: Callable[[MergeInputs, Any], Merged]
    options: type = NoOptions
    model_options: type = NoOptions
    exact: bool = False
    combination: Combination | None = None
    per_task: bool = False

    def with_options(self, options: Any) -> "MergeMethod":
        """Returns the method with what it needs with these options, and a name that tells.

        Options may name another method that is run first, as `first`, take what was added to a base
        model, as `origin`, or say what they need themselves, by `needs`.
        """
        requires, first = self.requires, getattr(options, "first", None)
        if hasattr(options, "needs"):
            requires = options.needs(requires)
        if getattr(options, "origin", "zero") == "base":
            requires = replace(requires, base=True)
        if first is None:
            return replace(self, requires=requires)
        return replace(
            self, name=f"{self.name}: {first.name}", requires=requires.after(first.requires)
        )

    def needs_base(self, options: Any) -> bool:
        """Tells whether a base model is needed with these options."""
        return self.with_options(options).requires.base
