"""Arguments and options of the command line → a recipe."""

from typing import Any

from hf_zip.errors import HfZipError
from hf_zip.recipe import Recipe

# Keys of a recipe that are options of the same name, with the same values.
_AS_GIVEN = ("dtype", "output", "rank", "max_shard_size", "seed", "license")


def recipe_from(models: list[str], options: dict[str, Any]) -> Recipe:
    """Returns the recipe in a file, or the one that arguments and options describe.

    Args:
        models: The path of a recipe; or folders and Hub ids.
        options: Values by option; nothing for an option that was not given.

    Raises:
        HfZipError: They contradict one another or do not make a recipe.
    """
    given = {name: value for name, value in options.items() if value is not None}
    files = [model for model in models if model.endswith((".yaml", ".yml"))]
    if files:
        if len(models) > 1:
            raise HfZipError(f"give one recipe and nothing else, not {' '.join(models)}")
        if given:
            raise HfZipError(
                f"{', '.join(given)} and a recipe exclude each other; change the recipe's keys "
                "with --set, such as --set seed=1"
            )
        return Recipe.from_yaml(files[0])
    if options["--method"] is None:
        raise HfZipError("no merge method; give --method NAME (`hf-zip methods` lists them)")
    tasks: list[str | None] = options["--task"] or [None] * len(models)
    if len(tasks) != len(models):
        raise HfZipError(
            f"there are {len(models)} models but {len(tasks)} times --task; give it once per model"
        )
    own: list[str | None] = options["--own-calibration"] or [None] * len(models)
    if len(own) != len(models):
        raise HfZipError(
            f"there are {len(models)} models but {len(own)} times --own-calibration; give it once "
            "per model"
        )
    samples = options["--samples"]
    if samples is not None and not (options["--calibration"] or options["--own-calibration"]):
        raise HfZipError("--samples says how many inputs to take, so give --calibration too")
    origins = _own_bases(options["--own-base"] or [], tasks)
    values = {
        "merge_method": options["--method"],
        "models": [
            {
                "model": model,
                "task": task,
                "calibration": _calibration(data, samples),
                "base_model": origin,
            }
            for model, task, data, origin in zip(models, tasks, own, origins, strict=True)
        ],
        "base_model": options["--base"],
        "stop_at": _depth(options["--stop-at"]),
        "budget": _budget(options["--budget"]),
        "labels": options["--labels"],
        "calibration": _calibration(options["--calibration"], samples),
        **{
            key: labelled(f"--{key}", options[f"--{key}"] or [])
            for key in ("evaluation", "validation")
        },
        **{key: options[f"--{key}"] for key in _AS_GIVEN if f"--{key}" in given},
    }
    return Recipe.from_dict(values)


def labelled(option: str, texts: list[str], what: str = "DATA") -> list[dict[str, str]]:
    """Returns the labelled data that an option names as TASK=DATA, as a recipe lists them.

    Args:
        option: The option, for messages.
        texts: What was given.
        what: What it names of a task, for messages.

    Raises:
        HfZipError: A text is of another form.
    """
    specs = []
    for text in texts:
        task, equals, data = text.partition("=")
        if not (task and equals and data):
            raise HfZipError(f"{option} takes TASK={what}, not {text!r}")
        specs.append({"task": task, "data": data})
    return specs


def _own_bases(texts: list[str], tasks: list[str | None]) -> list[str | None]:
    """The base of each model's own, from TASK=MODEL; nothing for models without."""
    found: list[str | None] = [None] * len(tasks)
    for named in labelled("--own-base", texts, "MODEL"):
        positions = [i for i, task in enumerate(tasks) if task == named["task"]]
        if len(positions) != 1:
            raise HfZipError(
                f"--own-base names the task {named['task']!r}, which {len(positions)} of the "
                "models have; give --task once per model, each another one, or write a recipe"
            )
        found[positions[0]] = named["data"]
    return found


def numbers(option: str, text: str | None, kind: type) -> list[Any] | None:
    """Returns the numbers in a text, with commas between; nothing where there is no text.

    Raises:
        HfZipError: There is something else in it.
    """
    try:
        return None if text is None else [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise HfZipError(f"{option} takes numbers with commas between, not {text!r}") from error


def _depth(text: str | None) -> int | str | None:
    return int(text) if text is not None and text.isdigit() else text


def _budget(texts: list[str] | None) -> dict[str, float] | None:
    if texts is None:
        return None
    budget = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            budget[name] = float(value)
        except ValueError as error:
            raise HfZipError(
                f"--budget takes parameters=X, explained=X or points=X, not {text!r}"
            ) from error
    return budget


def _calibration(data: list[str] | str | None, samples: int | None) -> dict[str, Any] | None:
    if data is None:
        return None
    return {"data": data, **({} if samples is None else {"samples": samples})}
