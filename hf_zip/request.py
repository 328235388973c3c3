"""What `hf_zip.merge` was asked for: a recipe, and what of it is already in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedModel

from hf_zip.accuracy import same_data
from hf_zip.errors import HfZipError
from hf_zip.recipe import CalibrationSpec, EvaluationSpec, Recipe
from hf_zip.sources import Source, from_model, load_source, load_sources, shared_base
from hf_zip.tasks import Task
from hf_zip.weighing.feed import Feed


@dataclass(frozen=True)
class Request:
    """A recipe, with models and data that are in memory instead of behind its names.

    Args:
        recipe: What to do.
        models: Models in memory by their position in the recipe.
        base: Their base model in memory.
        processor: Their image processor or tokenizer.
        calibration: Calibration inputs in memory.
        own_calibration: Those of models' own in memory, by position of the model in the recipe.
        own_bases: Base models of models' own in memory, likewise.
        evaluation: Labelled data in memory by task.
        validation: The same, for the choice of the depth.
        allow_pickle: Whether weights may be pickles.
    """

    recipe: Recipe
    models: Mapping[int, PreTrainedModel] = field(default_factory=dict)
    base: PreTrainedModel | None = None
    processor: Any = None
    calibration: Any = None
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    validation: Mapping[str, Any] = field(default_factory=dict)
    own_calibration: Mapping[int, Any] = field(default_factory=dict)
    own_bases: Mapping[int, PreTrainedModel] = field(default_factory=dict)
    allow_pickle: bool = False

    @property
    def has_calibration(self) -> bool:
        """Whether there are unlabelled inputs, for all models or of every model's own."""
        return self._shares_calibration or len(self.own_inputs) == len(self.recipe.models)

    @property
    def own_inputs(self) -> tuple[int, ...]:
        """The positions of the models that have unlabelled inputs of their own."""
        return tuple(
            position
            for position, spec in enumerate(self.recipe.models)
            if spec.calibration is not None or position in self.own_calibration
        )

    @property
    def _shares_calibration(self) -> bool:
        named = self.recipe.calibration is not None and bool(self.recipe.calibration.data)
        return named or self.calibration is not None

    @property
    def evaluates(self) -> bool:
        """Whether there are labelled data."""
        return bool(self.recipe.evaluation or self.evaluation)

    @property
    def validates(self) -> bool:
        """Whether there are labelled data to choose the depth on."""
        return bool(self.recipe.validation or self.validation)

    def load_sources(self) -> tuple[Source, ...]:
        """Returns the models, loaded from their names or copied from memory."""
        if not self.models:
            return load_sources(self.recipe.models, allow_pickle=self.allow_pickle)
        return tuple(
            from_model(self.models[i], spec.task, spec.model, self.processor)
            if i in self.models
            else load_source(spec.model, spec.task, allow_pickle=self.allow_pickle)
            for i, spec in enumerate(self.recipe.models)
        )

    def load_base(self) -> Source | None:
        """Returns the base model, loaded or copied from memory; nothing where there is none."""
        reference = self.recipe.base_model
        if reference is None:
            return None
        if self.base is not None:
            return from_model(self.base, None, reference)
        return load_source(reference, allow_pickle=self.allow_pickle)

    def load_own_bases(self) -> tuple[Source | None, ...]:
        """Returns the base of each model's own, each loaded once; nothing if none has any."""
        found: dict[str, Source] = {}
        for position, spec in enumerate(self.recipe.models):
            name = spec.base_model
            if name is None or name in found:
                continue
            memory = self.own_bases.get(position)
            found[name] = (
                load_source(name, allow_pickle=self.allow_pickle)
                if memory is None
                else from_model(memory, None, name)
            )
        specs = self.recipe.models if found else ()
        return tuple(found.get(spec.base_model or "") for spec in specs)

    def with_shared_base(self) -> "Request":
        """Returns the request with the base that all models are adapters of, where none is named.

        Raises:
            HfZipError: A model is not in reach, or an adapter does not say what its base is.
        """
        if self.recipe.base_model is not None or self.models:
            return self
        base = shared_base([spec.model for spec in self.recipe.models])
        return replace(self, recipe=replace(self.recipe, base_model=base))

    def load_calibration(
        self, source: Source, own: Sequence[Feed | None], progress: bool = True
    ) -> Any:
        """Returns the inputs for all models as a source takes them; nothing where there are none.

        Where every model has inputs of its own and none are for all, they are these together.

        Args:
            source: See `load_own_calibration`.
            own: What that returns.
            progress: See `load_own_calibration`.
        """
        if self._shares_calibration:
            return self._inputs(self.recipe.calibration, self.calibration, source, progress)
        found = [feed.inputs for feed in own if feed is not None]
        if not found or len(found) < len(self.recipe.models):
            return None
        from hf_zip.inputs import joined_inputs  # see _inputs

        return joined_inputs(found)

    def load_own_calibration(
        self, source: Source, progress: bool = True
    ) -> tuple[Feed | None, ...]:
        """Returns the inputs of each model's own as a source takes them; nothing if none has any.

        Args:
            source: The first model, in whose tokens all models are merged.
            progress: Show progress bars, on the main process.
        """
        if not self.own_inputs:
            return ()
        return tuple(
            self._own_feed(position, spec.calibration or CalibrationSpec(), source, progress)
            if position in self.own_inputs
            else None
            for position, spec in enumerate(self.recipe.models)
        )

    def _own_feed(
        self, position: int, spec: CalibrationSpec, source: Source, progress: bool
    ) -> Feed:
        inputs = self._inputs(spec, self.own_calibration.get(position), source, progress)
        return Feed(inputs, spec.batch_size)

    def _inputs(
        self, spec: CalibrationSpec | None, memory: Any, source: Source, progress: bool
    ) -> Any:
        # Not at the top: `datasets` takes a second and 85 MB, and merges without data need none.
        from hf_zip.readers import unlabelled_inputs

        return unlabelled_inputs(
            spec or CalibrationSpec(),
            memory,
            source,
            self.recipe.seed,
            progress=progress,
            allow_pickle=self.allow_pickle,
        )

    def load_evaluation(self, source: Source, tasks: Sequence[Task]) -> dict[str, Any]:
        """Returns labelled data by task, as a source takes them.

        Raises:
            HfZipError: Data are given for a task that does not exist, or twice for one.
        """
        named, memory = self.recipe.evaluation, self.evaluation
        return self._labelled("evaluation", named, memory, source, tasks, ("test", "validation"))

    def load_validation(self, source: Source, tasks: Sequence[Task]) -> dict[str, Any]:
        """Returns the labelled data that choose the depth, by task, as a source takes them.

        Raises:
            HfZipError: As for `load_evaluation`; or a task has none, or what it is evaluated on.
        """
        named, memory = self.recipe.validation, self.validation
        for name, rows in memory.items():
            if rows is self.evaluation.get(name):
                raise same_data(name)
        data = self._labelled("validation", named, memory, source, tasks, ("validation",))
        missing = [task.name for task in tasks if task.name not in data]
        if missing:
            raise HfZipError(
                f"budget.points limits the loss on every task, but task {missing[0]!r} has no "
                "validation data; give some"
            )
        return data

    def _labelled(
        self,
        key: str,
        named: Sequence[EvaluationSpec],
        memory: Mapping[str, Any],
        source: Source,
        tasks: Sequence[Task],
        preferred: Sequence[str],
    ) -> dict[str, Any]:
        if not named and not memory:
            return {}
        from hf_zip.readers import labelled_by_task  # see load_calibration

        return labelled_by_task(key, named, memory, source, tasks, preferred, self.recipe.seed)
