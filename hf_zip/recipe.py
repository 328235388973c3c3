"""What to merge, as a value: one frozen dataclass, one YAML, the command line's options."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml

from hf_zip.errors import HfZipError, unknown
from hf_zip.generated import TEXTS, check_generators, is_generated
from hf_zip.mergekit import is_mergekit, translated
from hf_zip.plain import assign_texts, build, kind, plain
from hf_zip.ranges import check_size

logger = logging.getLogger(__name__)

Unmerge = Literal["ridge", "exact"]
Labels = Literal["apart", "union"]
Output = Literal["model", "lora"]
DTYPES = ("float32", "bfloat16", "float16", "float64")
IN_MEMORY = "in memory"  # the name of data that have none


@dataclass(frozen=True)
class CalibrationSpec:
    """Unlabelled inputs, of all models or of one, from which statistics are gathered.

    Args:
        data: Data sets to take inputs from, in equal parts: a Hub id, an image folder, or a
            parquet, csv, json or txt file or glob; `DATA:column` names the input column. A
            generator (`hf_zip.generated`), such as `generated:noise`, draws images instead, and
            `synthesised:MODEL` draws some from a model; `sampled:MODEL` and `recombined:DATA`
            draw texts.
        split: Split to take; left out, `train` if there is one, else the only one.
        column: Input column of every data set that does not name its own; two for pairs of texts.
        samples: Inputs in all, drawn by `seed`; more than there are takes all.
        batch_size: Inputs per forward.
        max_length: Tokens of a text at most, special ones included; the rest is cut off. Models
            and tokenizers that take fewer get fewer.
    """

    data: tuple[str, ...] = ()
    split: str | None = None
    column: str | tuple[str, ...] | None = None
    samples: int = 1024
    batch_size: int = 32
    max_length: int = 128

    def __post_init__(self) -> None:
        """Checks the ranges, and the names of generators."""
        check_generators(self.data)
        _at_least("calibration.samples", self.samples, 1)
        _at_least("calibration.batch_size", self.batch_size, 1)
        _at_least("calibration.max_length", self.max_length, 1)


@dataclass(frozen=True)
class ModelSpec:
    """One model to merge.

    Args:
        model: A local folder or a Hub id, `org/name` or `org/name@revision`.
        task: Name of the task the model was trained on. Models with the same task name share one
            head. Left out, it is the folder's or repository's name.
        parameters: Options of the merge method for this model, such as `weight`.
        calibration: Unlabelled inputs of this model's own, such as those of its task, for methods
            that run each model by itself; left out, it is run on the shared ones.
        base_model: What this model was fine-tuned from, where that is not the recipe's
            `base_model`, for `transport` and what begins with it.
    """

    model: str
    task: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    calibration: CalibrationSpec | None = None
    base_model: str | None = None

    REFUSED: ClassVar[Mapping[str, str]] = {
        "data": "data are named by 'calibration: {data: [...]}'"
    }


@dataclass(frozen=True)
class Budget:
    """What decides the depth of a merge with `stop_at: auto`.

    Args:
        parameters: The merge may have so many times the parameters of one source.
        explained: Each source's stream must be explained by the merged one to so much, in (0, 1],
            on calibration inputs that were held out.
        points: On every task the merge may lose so many percent points of accuracy against the
            ensemble, on validation data; where a task is measured otherwise (`hf_zip.metrics`), of
            that metric times 100.
    """

    parameters: float | None = None
    explained: float | None = None
    points: float | None = None

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.parameters is not None and self.parameters <= 0:
            raise HfZipError(f"budget.parameters is {self.parameters}; it should be positive")
        if self.explained is not None and not 0 < self.explained <= 1:
            raise HfZipError(f"budget.explained is {self.explained}; it should be in (0, 1]")
        if self.points is not None and not 0 <= self.points <= 100:
            raise HfZipError(f"budget.points is {self.points}; it should be in [0, 100]")


@dataclass(frozen=True)
class EvaluationSpec:
    """Labelled inputs of one task.

    Args:
        task: The task, as named in `models`.
        data: A Hub id, an image folder, or a parquet, csv, json or txt file or glob.
        split: Split to take; left out, `test`, else `validation`, else the only one. Under
            `validation`, it is `validation`, else the only one.
        column: Input column, or two for pairs of texts; left out, what can only be meant.
        label_column: Label column; left out, `label` or the only class-label column.
        samples: At most so many, drawn by `seed`; left out, all.
        batch_size: Inputs per forward.
        max_length: See `CalibrationSpec`.
    """

    task: str
    data: str
    split: str | None = None
    column: str | tuple[str, ...] | None = None
    label_column: str | None = None
    samples: int | None = None
    batch_size: int = 64
    max_length: int = 128

    def __post_init__(self) -> None:
        """Checks the ranges, and that the data can have labels."""
        if is_generated(self.data):
            drawn = "texts" if self.data.startswith(TEXTS) else "images"
            raise HfZipError(
                f"task {self.task!r} is to be measured on {self.data!r}, whose {drawn} have no "
                "labels; name a data set with labels"
            )
        _at_least("evaluation.batch_size", self.batch_size, 1)
        _at_least("evaluation.max_length", self.max_length, 1)
        if self.samples is not None:
            _at_least("evaluation.samples", self.samples, 1)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a merge.

    The same names are the keys of the YAML file, the arguments of `hf_zip.merge` and the options
    of `hf-zip merge`. The keys that mergekit has too mean what they mean there.

    Args:
        merge_method: Name of a merge method (`hf-zip methods` lists them).
        models: The models to merge, at least one.
        base_model: The model that the others were fine-tuned from, for methods that need it, and
            for the report to compare what each changed of it.
        parameters: Options of the merge method.
        dtype: Precision of the written weights. The mathematics is float32 or better.
        stop_at: Number of transformer blocks that are shared; left out, all of them; `auto`
            chooses by the budget.
        budget: What the merge may cost or must keep, for `stop_at: auto`.
        unmerge: How the tails of a partial zip read what is shared: `ridge`, through linear maps
            that are fitted on the calibration inputs; `exact`, rewritten in the merged features,
            for methods that only permute or rotate. Left out, `ridge` where there are such inputs.
        labels: What becomes of labels that several models have, but not all the same: "apart" keeps
            a label of two tasks as `task/label`; "union" gives models of one task one head with
            the labels of all of them. Left out, such models are refused.
        calibration: Unlabelled data, for methods that need it and for the evaluation's controls.
            Left out where every model has some of its own, it is these together.
        evaluation: Labelled data, one entry per task, or several.
        validation: Labelled data of every task on which `budget.points` chooses the depth, as under
            `evaluation`; nothing is reported on them.
        seed: Decides every random choice.
        output: "model" writes the merged model; "lora" what it changes of its base, as a PEFT
            adapter, for merges parameter by parameter whose base is known.
        rank: Rank of that adapter; left out, the smallest that leaves out no more than rounding.
        max_shard_size: Size of a file of weights, such as "5GB", beyond which another begins; left
            out, that of transformers' `save_pretrained`.
        license: Licence that the card of the merge states, as the Hub names it; left out, that of
            the models where they all state one and the same, else none.
    """

    merge_method: str
    models: tuple[ModelSpec, ...]
    base_model: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    stop_at: int | Literal["auto"] | None = None
    budget: Budget | None = None
    unmerge: Unmerge | None = None
    labels: Labels | None = None
    calibration: CalibrationSpec | None = None
    evaluation: tuple[EvaluationSpec, ...] = ()
    validation: tuple[EvaluationSpec, ...] = ()
    seed: int = 0
    output: Output = "model"
    rank: int | None = None
    max_shard_size: str | None = None
    license: str | None = None

    def __post_init__(self) -> None:
        """Checks what can be checked without loading anything."""
        if not self.models:
            raise HfZipError("the recipe names no models; list at least two under 'models'")
        if self.dtype not in DTYPES:
            raise unknown("dtype", self.dtype, DTYPES)
        if self.budget is not None and self.stop_at != "auto":
            raise HfZipError(
                f"a budget chooses the depth, but stop_at is {self.stop_at}; use stop_at: auto"
            )
        if self.stop_at == "auto" and self.budget in (None, Budget()):
            raise HfZipError(
                "stop_at: auto needs a budget, such as 'budget: {parameters: 1.5}' (times the "
                "parameters of one source), 'budget: {explained: 0.95}' or 'budget: {points: 1.0}'"
            )
        _at_least("seed", self.seed, 0)
        if self.rank is not None:
            _at_least("rank", self.rank, 1)
            if self.output != "lora":
                raise HfZipError("rank is that of an adapter; use output: lora, or leave rank out")
        if self.max_shard_size is not None:
            check_size("max_shard_size", self.max_shard_size)
            if self.output == "lora":
                raise HfZipError(
                    "max_shard_size is that of a model's files; an adapter has one, so leave it out"
                )
        if isinstance(self.stop_at, int):
            _at_least("stop_at", self.stop_at, 0)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """Returns the recipe that a mapping describes.

        Raises:
            HfZipError: A key is unknown or missing, or a value has the wrong type.
        """
        recipe: Recipe = build(cls, values, "recipe")
        return recipe

    @classmethod
    def from_yaml(cls, path: str | Path) -> "Recipe":
        """Returns the recipe in a YAML file, which may be one of mergekit's (`hf_zip.mergekit`).

        Raises:
            HfZipError: The file is missing, is not YAML, or does not describe a recipe.
        """
        path = Path(path)
        if not path.is_file():
            raise HfZipError(f"recipe {str(path)!r} is not a file; give the path of a YAML recipe")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise HfZipError(f"recipe {str(path)!r} is not valid YAML: {error}") from error
        if not isinstance(values, Mapping):
            raise HfZipError(
                f"recipe {str(path)!r} holds {kind(values)}, but should be a mapping with the "
                "keys 'merge_method' and 'models'"
            )
        if is_mergekit(values):
            values, notes = translated(values)
            for note in notes:
                logger.info("%s: %s", path, note)
        return cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """Returns the recipe as plain dicts, lists and scalars, every default written out."""
        values: dict[str, Any] = plain(self)
        return values

    def to_yaml(self) -> str:
        """Returns the recipe as YAML, every default written out."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def with_overrides(self, assignments: Sequence[str]) -> "Recipe":
        """Returns the recipe with `key=value` assignments made, as `--set` takes them.

        Args:
            assignments: Dotted keys and YAML values, such as `parameters.alpha=0.5` or
                `models.0.task=cars`.

        Raises:
            HfZipError: An assignment has no `=`, or its key does not exist.
        """
        values = self.to_dict()
        assign_texts(values, assignments)
        return self.from_dict(values)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise HfZipError(f"{name} is {value}; it should be at least {least}")
