"""What kind of question the head of a model answers."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from hf_zip.modeling import HfZipClipConfig, HfZipClipForImageClassification

Kind = Literal[
    "classification",
    "multi-label-classification",
    "regression",
    "token-classification",
    "question-answering",
    "masked-lm",
    "features",
    "other",
]

UNLABELLED = -100  # the label of tokens that have none, as transformers' losses pass it over

_SPAN = ("start_positions", "end_positions")
_TOKENS = ("token-classification", "question-answering", "masked-lm")

_PROBLEMS: Mapping[Kind, str] = {
    "regression": "regression",
    "multi-label-classification": "multi_label_classification",
}

_BY_MAPPING: Mapping[Kind, tuple[Mapping[str, Any], ...]] = {
    "classification": (
        modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
        {HfZipClipConfig.model_type: HfZipClipForImageClassification.__name__},
    ),
    "token-classification": (
        modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_AUDIO_FRAME_CLASSIFICATION_MAPPING_NAMES,
    ),
    "question-answering": (modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,),
    "masked-lm": (modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,),
    "features": (modeling_auto.MODEL_MAPPING_NAMES,),
}


def head_kind(model: PreTrainedModel) -> Kind:
    """Returns the kind of a model's head, by its class and, of classifiers, by its config.

    Models without a head give features; heads of a kind that transformers' auto classes do not
    tell are "other".
    """
    names = [cls.__name__ for cls in type(model).__mro__]
    for kind, mappings in _BY_MAPPING.items():
        known = {name for mapping in mappings for name in _flat(mapping.values())}
        if not known.isdisjoint(names):
            return _answer(model.config) if kind == "classification" else kind
    return "other"


def target_names(kind: Kind) -> tuple[str, ...]:
    """Returns the names under which labelled inputs have what is right, as models take it."""
    return _SPAN if kind == "question-answering" else ("labels",)


def has_labels(kind: Kind) -> bool:
    """Tells whether the rows of a kind's heads are labels of their own.

    Those of spans and of words mean the same in every model, so that models share one such head.
    """
    return kind not in ("question-answering", "masked-lm")


def asks_of_tokens(kind: Kind) -> bool:
    """Tells whether heads of a kind answer for every token, not once for an input."""
    return kind in _TOKENS


def problem_type(kinds: Iterable[Kind], own: str | None) -> str | None:
    """Returns the `problem_type` of a classifier with rows of these kinds.

    Args:
        kinds: The kinds, of at least one task.
        own: What its config has, which stays where all rows are of labels that exclude one another.
    """
    found = {*kinds}
    if len(found) > 1:
        return None
    (kind,) = found
    return own if kind == "classification" else _PROBLEMS.get(kind)


def _answer(config: PretrainedConfig) -> Kind:
    """What a classifier's rows are, told as its loss tells it."""
    problem = config.problem_type
    if problem == "regression" or (problem is None and config.num_labels == 1):
        return "regression"
    several = problem == "multi_label_classification"
    return "multi-label-classification" if several else "classification"


def _flat(names: Iterable[str | tuple[str, ...]]) -> list[str]:
    return [name for entry in names for name in ([entry] if isinstance(entry, str) else entry)]
