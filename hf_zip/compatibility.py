"""Whether two models fit together: their classes, shapes, configs and processors."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    SequenceFeatureExtractor,
)

from hf_zip.learned import learned
from hf_zip.processors import image_processor, prepares_texts, tokenizer
from hf_zip.sources import Source
from hf_zip.task_head import task_heads

Level = Literal["error", "warning", "info"]

_SHAPES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "image_size",
    "patch_size",
    "num_channels",
    "vocab_size",
    "max_position_embeddings",
    "type_vocab_size",
    "spaces",
)
# Used in training only, or by heads that are not merged. So is everything with "drop" in its name.
_WITHOUT_EFFECT = (
    "initializer_range",
    "initializer_factor",
    "logit_scale_init_value",
    "encoder_stride",
)
_PREPARATION = {
    "do_convert_rgb": (),
    "do_resize": ("size", "resample"),
    "do_center_crop": ("crop_size",),
    "do_rescale": ("rescale_factor",),
    "do_normalize": ("image_mean", "image_std"),
    "do_pad": ("pad_size",),
}


@dataclass(frozen=True)
class Finding:
    """One thing that was noticed.

    Args:
        level: An error stops the merge; a warning is for the reader to judge.
        code: Which check found it, as one fixed word.
        message: What it is, with names and values, and what to do.
    """

    level: Level
    code: str
    message: str


def refused(code: str, problem: str, remedy: str, forced: str, force: bool) -> Finding:
    """Returns the finding for a problem that somebody may know better about.

    Args:
        code: Which check found it.
        problem: What it is.
        remedy: What to do about it.
        forced: What is done all the same if the reader insists.
        force: The reader insists: it is a warning, no error.
    """
    if force:
        return Finding("warning", code, f"{problem}; by --force {forced}")
    return Finding("error", code, f"{problem}. {remedy}, or pass --force, by which {forced}")


def compare_architectures(first: Source, other: Source) -> Iterator[Finding]:
    """Returns the differences of class and shape, what follows from another one left out.

    Args:
        first: The one model.
        other: The other, of the same type.
    """
    pair, (a, b) = both(first, other), (first.model, other.model)
    if type(a) is not type(b):
        yield Finding(
            "error",
            "class",
            f"{pair} are of different classes, {type(a).__name__} and {type(b).__name__}; save "
            "both as one class",
        )
    differing = differing_shapes(a, b)
    for key, (x, y) in differing.items():
        yield Finding(
            "error",
            "shape",
            f"{pair} differ in {key}, {x} and {y}; only models of one shape can be merged",
        )
    if differing or type(a) is not type(b):
        return
    mine, theirs = _trunk_shapes(a), _trunk_shapes(b)
    names = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
    if names:
        shapes = (f"{n} {mine.get(n, 'absent')} and {theirs.get(n, 'absent')}" for n in names[:3])
        yield Finding(
            "error",
            "shape",
            f"{pair} differ in {len(names)} parameters outside their heads: {', '.join(shapes)}"
            f"{', …' if len(names) > 3 else ''}; only models of one shape can be merged",
        )


def differing_shapes(a: PreTrainedModel, b: PreTrainedModel) -> dict[str, tuple[Any, Any]]:
    """Returns the entries of two models' configs that say other shapes, by name, with both values.

    Args:
        a: The one model.
        b: The other, of the same family.
    """
    return {
        f"{part}{key}": (_value(mine, key), _value(theirs, key))
        for part, mine, theirs in _config_pairs(a, b)
        for key in _SHAPES
        if _value(mine, key) != _value(theirs, key)
    }


def _config_pairs(
    a: PreTrainedModel, b: PreTrainedModel
) -> Iterator[tuple[str, PretrainedConfig, PretrainedConfig]]:
    """The configs of two models, and those of their parts with what comes before their entries."""
    yield "", a.config, b.config
    used = {type(part.config) for part in a.modules() if isinstance(part, PreTrainedModel)}
    for name in a.config.sub_configs:
        mine, theirs = getattr(a.config, name, None), getattr(b.config, name, None)
        if type(mine) is type(theirs) and type(mine) in used:
            yield f"{name}.", mine, theirs


def _trunk_shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    heads = tuple(f"{name}." for name in task_heads(model))
    return {
        name: tuple(tensor.shape)
        for name, tensor in learned(model).items()
        if not name.startswith(heads)
    }


def compare_configs(first: Source, other: Source, force: bool) -> Iterator[Finding]:
    """Returns the differences between the config values that the family declares.

    What every config has is labels, names and bookkeeping, and shapes are `compare_architectures`'.

    Args:
        first: The one model; the merged model gets its config.
        other: The other, of the same type.
        force: See `refused`.
    """
    for part, a, b in _config_pairs(first.model, other.model):
        yield from _compare_entries(part, a, b, first, other, force)


def _compare_entries(
    part: str,
    a: PretrainedConfig,
    b: PretrainedConfig,
    first: Source,
    other: Source,
    force: bool,
) -> Iterator[Finding]:
    pair = both(first, other)
    everywhere = {field.name for field in dataclasses.fields(PretrainedConfig)} | set(a.sub_configs)
    keys = [field.name for field in dataclasses.fields(a) if field.name not in everywhere]
    # Some families give their shapes names of their own.
    shapes = {a.attribute_map.get(key, key) for key in _SHAPES}
    for key in keys:
        x, y = _value(a, key), _value(b, key)
        if key.endswith("_token_id") and has_tokenizer(first) and has_tokenizer(other):
            x, y = _token(first, x), _token(other, y)
        if x == y or key in shapes:
            continue
        key = f"{part}{key}"
        problem = f"{pair} differ in {key}, {x!r} and {y!r}"
        if key.endswith(_WITHOUT_EFFECT) or "drop" in key:
            yield Finding("info", "config", f"{problem}, which does not change what they compute")
        elif key.endswith("_eps"):
            yield Finding("warning", "config", f"{problem}; the merged model has the first's")
        else:
            yield refused(
                "config",
                f"{problem}, so the same weights mean different functions",
                f"Merge models with the same {key}",
                "the merged model has the first's",
                force,
            )


def compare_processors(first: Source, other: Source, force: bool) -> Iterator[Finding]:
    """Returns the differences in how images or sounds are prepared, and in what kind of inputs is.

    Args:
        first: The one model; the merged model gets its processor.
        other: The other.
        force: See `refused`.
    """
    pair, (a, b) = both(first, other), (first.processor, other.processor)
    if (a is None) != (b is None):
        has = first if b is None else other
        yield Finding(
            "warning",
            "processor",
            f"of {pair} only {has.reference!r} has a {_kind(has)}; check that both were trained on "
            "inputs that it prepares",
        )
    if a is None or b is None:
        return
    if has_tokenizer(first) != has_tokenizer(other):
        yield Finding(
            "error",
            "processor",
            f"{first.reference!r} has a {_kind(first)}, but {other.reference!r} has a "
            f"{_kind(other)}; save beside each what it was trained with",
        )
        return
    mine, theirs = _preparation(image_processor(a)), _preparation(image_processor(b))
    keys = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
    if keys:
        values = ", ".join(f"{key} {mine.get(key)} and {theirs.get(key)}" for key in keys)
        what, by = ("sounds", "feature extractor") if _hears(a) else ("images", "image processor")
        yield refused(
            "processor",
            f"{pair} prepare {what} differently: {values}",
            f"Fine-tune both with one {by}",
            f"the first's prepares all {what}",
            force,
        )


def has_tokenizer(source: Source) -> bool:
    """Tells whether a source's processor is a tokenizer or has one."""
    return prepares_texts(source.processor)


def _kind(source: Source) -> str:
    alone = has_tokenizer(source) and not isinstance(source.processor, ProcessorMixin)
    return "tokenizer" if alone else "processor"


def _token(source: Source, value: Any) -> Any:
    """What the id of a special token stands for."""
    return (
        tokenizer(source.processor).convert_ids_to_tokens(value)
        if isinstance(value, int)
        else value
    )


def _hears(processor: Any) -> bool:
    return isinstance(processor, SequenceFeatureExtractor)


def _preparation(processor: Any) -> dict[str, Any]:
    """What a processor does; values of steps that one of images leaves out do not count."""
    values = processor.to_dict() if hasattr(processor, "to_dict") else {}
    if _hears(processor):
        return {key: _plain(value) for key, value in values.items()}
    return {
        key: _plain(values.get(key))
        for step, keys in _PREPARATION.items()
        if values.get(step)
        for key in (step, *keys)
    }


def both(first: Source, other: Source) -> str:
    """Returns the names of two sources for a message."""
    return f"{first.reference!r} and {other.reference!r}"


def _value(config: PretrainedConfig, key: str) -> Any:
    return _plain(getattr(config, key, None))


def _plain(value: Any) -> Any:
    """Returns a value as a file would hold it: lists for tuples, numbers for enumerations."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value
