"""The data of a request, read as one of its models takes them."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_zip.calibration import from_memory, labelled_from_memory, load_inputs, load_labelled
from hf_zip.errors import HfZipError, unknown
from hf_zip.images import ImageReader
from hf_zip.inputs import Reader
from hf_zip.pairs import PairReader
from hf_zip.processors import image_processor, longest_text, tokenizer
from hf_zip.recipe import CalibrationSpec, EvaluationSpec
from hf_zip.sources import Source
from hf_zip.tasks import Task
from hf_zip.texts import TextReader


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


def unlabelled_inputs(
    spec: CalibrationSpec,
    memory: Any,
    source: Source,
    seed: int,
    *,
    progress: bool = True,
    allow_pickle: bool = False,
) -> Any:
    """Returns calibration inputs as a source takes them.

    Args:
        spec: The data sets to take them from, and how.
        memory: Inputs in memory, which come before data sets; nothing where there are none.
        source: The model.
        seed: Decides which inputs are drawn.
        progress: See `load_inputs`.
        allow_pickle: See `load_inputs`.
    """
    reader = reader_of(source, spec.max_length)
    if memory is not None:
        return from_memory(memory, reader)
    return load_inputs(spec, reader, seed, progress=progress, allow_pickle=allow_pickle)


def labelled_by_task(
    key: str,
    named: Sequence[EvaluationSpec],
    memory: Mapping[str, Any],
    source: Source,
    tasks: Sequence[Task],
    preferred: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    """Returns labelled data by task, as a source takes them.

    Args:
        key: What the recipe calls them, for messages.
        named: Data sets by name.
        memory: Data in memory by task.
        source: The model.
        tasks: All tasks.
        preferred: The splits to take where none is named.
        seed: Decides which rows are drawn.

    Raises:
        HfZipError: Data are given for a task that does not exist, or twice for one.
    """
    known = {task.name: task for task in tasks}
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
