"""What `hf_zip.merge` was asked for: a recipe, and what of it is already in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel

from hf_zip.accuracy import same_data
from hf_zip.calibration import from_memory, labelled_from_memory, load_inputs, load_labelled
from hf_zip.data import names_data
from hf_zip.errors import HfZipError, unknown
from hf_zip.images import ImageReader
from hf_zip.inputs import Reader
from hf_zip.pairs import PairReader
from hf_zip.processors import image_processor, tokenizer
from hf_zip.recipe import CalibrationSpec, EvaluationSpec, Recipe
from hf_zip.sources import Source, from_model, load_source, load_sources, shared_base
from hf_zip.tasks import Task
from hf_zip.texts import TextReader, longest_text

_FOR_LISTS = "give them in the recipe, or give a list of models instead of a recipe"


@dataclass(frozen=True)
class Request:
    """A recipe, with models and data that are in memory instead of behind its names.

    Args:
        recipe: What to do.
        models: Models in memory by their position in the recipe.
        base: Their base model in memory.
        processor: Their image processor or tokenizer.
        calibration: Calibration inputs in memory.
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
    allow_pickle: bool = False

    @property
    def has_calibration(self) -> bool:
        """Whether there are unlabelled inputs."""
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

    def with_shared_base(self) -> "Request":
        """Returns the request with the base that all models are adapters of, where none is named.

        Raises:
            HfZipError: A model is not in reach, or an adapter does not say what its base is.
        """
        if self.recipe.base_model is not None or self.models:
            return self
        base = shared_base([spec.model for spec in self.recipe.models])
        return replace(self, recipe=replace(self.recipe, base_model=base))

    def load_calibration(self, source: Source) -> Any:
        """Returns the calibration inputs as a source takes them; nothing where there are none."""
        if not self.has_calibration:
            return None
        spec = self.recipe.calibration or CalibrationSpec()
        reader = reader_of(source, spec.max_length)
        if self.calibration is not None:
            return from_memory(self.calibration, reader)
        return load_inputs(spec, reader, self.recipe.seed)

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
        known, seed = {task.name: task for task in tasks}, self.recipe.seed
        data = {}
        for name, rows in memory.items():
            if name not in known:
                raise unknown(f"task under {key!r}", name, known)
            task, reader = known[name], reader_of(source, EvaluationSpec.max_length)
            data[name] = labelled_from_memory(rows, reader, task.labels, name, task.kind)
        for spec in named:
            if spec.task in data:
                raise HfZipError(f"task {spec.task!r} has {key} data twice; give them once")
            if spec.task not in known:
                raise unknown(f"task under {key!r}", spec.task, known)
            reader, task = reader_of(source, spec.max_length), known[spec.task]
            data[spec.task] = load_labelled(spec, reader, task.labels, seed, preferred, task.kind)
        return data


def read_request(
    models: Recipe | Mapping[str, Any] | str | Path | Sequence[str | Path | PreTrainedModel],
    method: str | None = None,
    tasks: Sequence[str | None] | None = None,
    processor: Any = None,
    calibration: Any = None,
    evaluation: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    recipe_keys: Mapping[str, Any] | None = None,
    validation: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
) -> Request:
    """Returns the request that the arguments of `hf_zip.merge` describe.

    Raises:
        HfZipError: The arguments contradict one another or do not make a recipe.
    """
    recipe = _as_recipe(models)
    if recipe is not None:
        given = {"method": method, "tasks": tasks, "calibration": calibration}
        given |= {"evaluation": evaluation, "validation": validation, **(recipe_keys or {})}
        twice = [name for name, value in given.items() if value is not None]
        if twice:
            raise HfZipError(f"the recipe decides {', '.join(twice)}; {_FOR_LISTS}")
        return Request(recipe, processor=processor)
    if method is None:
        raise HfZipError("no merge method; give method=NAME, such as method='zipit'")
    listed: list[Any] = list(cast("Sequence[Any]", models))
    if tasks is not None and len(tasks) != len(listed):
        raise HfZipError(
            f"there are {len(listed)} models but {len(tasks)} tasks; give one task per model"
        )
    in_memory = {i: m for i, m in enumerate(listed) if isinstance(m, PreTrainedModel)}
    task_names: Sequence[str | None] = tasks or [None] * len(listed)
    names = [f"model_{i}" if i in in_memory else str(m) for i, m in enumerate(listed)]
    keys = dict(recipe_keys or {})
    base = keys.get("base_model")
    base = base if isinstance(base, PreTrainedModel) else None
    if base is not None:
        keys["base_model"] = "base_model"
    calibration_spec, calibration_memory = _calibration(calibration)
    evaluation_specs, evaluation_memory = _evaluation(evaluation)
    validation_specs, validation_memory = _evaluation(validation)
    values = {
        "merge_method": method,
        "models": [
            {"model": name, "task": task} for name, task in zip(names, task_names, strict=True)
        ],
        "calibration": calibration_spec,
        "evaluation": evaluation_specs,
        "validation": validation_specs,
        **keys,
    }
    return Request(
        Recipe.from_dict(values),
        in_memory,
        base,
        processor,
        calibration_memory,
        evaluation_memory,
        validation_memory,
    )


def reader_of(source: Source, max_length: int) -> Reader:
    """Returns what reads data as a source takes them.

    Args:
        source: The model, with its image processor or tokenizer.
        max_length: Tokens of a text at most.

    Raises:
        HfZipError: It takes neither images nor texts nor both together.
    """
    model, takes = source.model, source.model.main_input_name
    config = getattr(model.config, "vision_config", model.config)
    shape = {name: getattr(config, name, None) for name in ("num_channels", "image_size")}
    images = ImageReader(image_processor(source.processor), **shape)
    texts = TextReader(tokenizer(source.processor), longest_text(model), max_length)
    if {"image", "text"} <= set(model.input_modalities):
        return PairReader(images, texts)
    if takes == ImageReader.key:
        return images
    if takes == TextReader.key:
        return texts
    raise HfZipError(
        f"{source.reference!r} takes {takes}, and no data can be read as that; models should take "
        f"{ImageReader.key} or {TextReader.key}"
    )


def _as_recipe(models: Any) -> Recipe | None:
    if isinstance(models, Recipe):
        return models
    if isinstance(models, Mapping):
        return Recipe.from_dict(models)
    if isinstance(models, str | Path):
        return Recipe.from_yaml(models)
    return None


def _calibration(calibration: Any) -> tuple[Any, Any]:
    """What goes into the recipe, and what is in memory."""
    if isinstance(calibration, Mapping):
        return calibration, None
    if isinstance(calibration, str | Path):
        return {"data": str(calibration)}, None
    listed = isinstance(calibration, list | tuple) and calibration
    if listed and all(isinstance(name, str | Path) for name in calibration):
        names = [str(name) for name in calibration]
        if not _are_texts(names):
            return {"data": names}, None
    return None, calibration


def _are_texts(names: Sequence[str]) -> bool:
    """Tells whether what may be names of data can only be texts to run models on."""
    return any(" " in name for name in names) and not any(map(names_data, names))


def _evaluation(evaluation: Any) -> tuple[list[Any], dict[str, Any]]:
    """What goes into the recipe, and what is in memory."""
    if evaluation is None:
        return [], {}
    if not isinstance(evaluation, Mapping):
        return list(evaluation), {}
    specs, memory = [], {}
    for task, data in evaluation.items():
        if isinstance(data, str | Path):
            specs.append({"task": task, "data": str(data)})
        elif isinstance(data, Mapping):
            specs.append({"task": task, **data})
        else:
            memory[task] = data
    return specs, memory
