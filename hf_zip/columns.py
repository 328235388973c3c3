"""Which columns of a data set hold images, texts and labels."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Image, LargeList, List, Value
from PIL import Image as PillowImage

from hf_zip.data import Table
from hf_zip.errors import HfZipError, unknown

_LABEL_TYPE = re.compile(r"u?int\d+|bool|(large_)?string")
_TEXT_TYPE = re.compile(r"(large_)?string")
_NUMBER_TYPE = re.compile(r"u?int\d+|float\d+")
_LABELS = ("label", "labels")
_SCORES = (*_LABELS, "score")
_TAGS = ("ner_tags", "labels", "tags")
_WORDS = ("tokens", "words")
_TEXTS = ("text", "sentence")
_PAIRS = (
    ("text", "text2"),
    ("text", "text_pair"),
    ("text1", "text2"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question1", "question2"),
)


def image_column(table: Table, column: str | Sequence[str] | None) -> str:
    """Returns the column that holds images.

    Args:
        table: The data.
        column: The column to take, unless the data were given as `DATA:column`.

    Raises:
        HfZipError: There is no such column, none that holds images, or several.
    """
    named = _named(table, column)
    if len(named) > 1:
        raise HfZipError(
            f"{len(named)} columns are named for data {table.name!r} ({', '.join(named)}), but the "
            "models take one image; name one column"
        )
    if named:
        return named[0]
    features = table.rows.features
    typed = [name for name, feature in features.items() if isinstance(feature, Image)]
    if not typed:
        first = table.rows[0]
        typed = [name for name in features if _looks_like_image(first[name])]
    if len(typed) != 1:
        raise HfZipError(
            f"data {table.name!r} have {len(typed) or 'no'} columns that hold images, which the "
            f"models take; name one as {table.name}:COLUMN. Columns: {columns(table.rows)}"
        )
    return typed[0]


def text_columns(
    table: Table, column: str | Sequence[str] | None, label_column: str | None = None
) -> tuple[str, ...]:
    """Returns the column that holds texts, or the two that hold pairs of texts.

    They are a pair of columns such as `sentence1` and `sentence2`, `text` or `sentence`, lists of
    words in `tokens` or `words`, or the only column of texts that is not one of labels.

    Args:
        table: The data.
        column: The column or pair to take, unless the data were given as `DATA:column`.
        label_column: The column of labels, if it is named.

    Raises:
        HfZipError: There is no such column, none that holds texts, several, or more than a pair is
            named.
    """
    named, features = _named(table, column), table.rows.features
    if len(named) > 2:
        raise HfZipError(
            f"{len(named)} columns are named for data {table.name!r} ({', '.join(named)}), but the "
            "models take a text or a pair of texts; name one or two"
        )
    for name in named:
        if not _holds_text(features[name]) and not _holds_words(features[name]):
            raise HfZipError(
                f"column {name!r} of data {table.name!r} holds {_type(features[name])}, but the "
                f"models take texts; name a column of texts. Columns: {columns(table.rows)}"
            )
    if named:
        return named
    texts = [
        name
        for name, feature in features.items()
        if _holds_text(feature) and name not in (*_LABELS, label_column)
    ]
    found: list[tuple[str, ...]] = [p for p in _PAIRS if all(name in texts for name in p)]
    paired = [name for pair in found for name in pair]
    found += [(name,) for name in _TEXTS if name in texts and name not in paired]
    if not found:
        lists = [name for name in _WORDS if name in features and _holds_words(features[name])]
        found = [(name,) for name in lists[:1] or texts]
    if len(found) != 1:
        raise HfZipError(
            f"data {table.name!r} have {len(found) or 'no'} columns that may hold the texts which "
            f"the models take; name one as {table.name}:COLUMN, or a pair as 'column: [A, B]'. "
            f"Columns: {columns(table.rows)}"
        )
    return found[0]


def pair_columns(
    table: Table, column: str | Sequence[str] | None, label_column: str | None = None
) -> tuple[str, str]:
    """Returns the columns that hold images and texts.

    Args:
        table: The data.
        column: The two columns to take, the images' first.
        label_column: The column of labels, if it is named.

    Raises:
        HfZipError: There is no such column, none or several that hold images or texts, or not two
            are named.
    """
    named = _named(table, column)
    if len(named) not in (0, 2):
        raise HfZipError(
            f"{len(named)} columns are named for data {table.name!r} ({', '.join(named)}), but the "
            "models take an image and a text; name both as 'column: [IMAGE, TEXT]'"
        )
    image = image_column(table, named[:1])
    texts = text_columns(table, named[1:], label_column)
    if len(texts) > 1:
        raise HfZipError(
            f"data {table.name!r} hold pairs of texts ({', '.join(texts)}), but the models take "
            "one text with each image; name the columns as 'column: [IMAGE, TEXT]'"
        )
    return image, texts[0]


def _named(table: Table, column: str | Sequence[str] | None) -> tuple[str, ...]:
    column = table.column or column or ()
    names = (column,) if isinstance(column, str) else tuple(column)
    return tuple(_existing(table, name) for name in names)


def _holds_text(feature: Any) -> bool:
    return bool(_TEXT_TYPE.fullmatch(_type(feature)))


def _holds_words(feature: Any) -> bool:
    return isinstance(feature, List | LargeList) and _holds_text(feature.feature)


def word_column(
    table: Table, column: str | Sequence[str] | None, tag_column: str | None = None
) -> str:
    """Returns the column that holds lists of words: `tokens`, `words`, or the only one.

    Args:
        table: The data.
        column: The column to take, unless the data were given as `DATA:column`.
        tag_column: The column of tags, which may be texts too.

    Raises:
        HfZipError: There is no such column, none that holds lists of words, or several.
    """
    features, named = table.rows.features, _named(table, column)
    if len(named) == 1 and _holds_words(features[named[0]]):
        return named[0]
    found = [name for name in features if _holds_words(features[name]) and name != tag_column]
    found = [name for name in _WORDS if name in found][:1] or found
    if named or len(found) != 1:
        what = f"{', '.join(named)} hold" if named else f"{len(found) or 'no'} columns hold"
        raise HfZipError(
            f"{what} lists of words in data {table.name!r}, but token classification takes one "
            f"such column; name it as {table.name}:COLUMN. Columns: {columns(table.rows)}"
        )
    return found[0]


def tag_column(table: Table, column: str | None) -> str:
    """Returns the column that holds one label per word: `ner_tags`, `labels` or `tags`.

    Args:
        table: The data.
        column: The column to take.

    Raises:
        HfZipError: There is no such column, or it does not hold lists of labels.
    """
    features = table.rows.features
    found = [_existing(table, column)] if column else [n for n in _TAGS if n in features]
    lists = [name for name in found if isinstance(features[name], List | LargeList)]
    if not lists or not _holds_labels(features[lists[0]].feature):
        raise HfZipError(
            f"data {table.name!r} have no column of lists of labels"
            f"{f' {column!r}' if column else ' ' + ', '.join(_TAGS)}, which token classification "
            f"takes; name one as label_column. Columns: {columns(table.rows)}"
        )
    return lists[0]


def score_column(table: Table, column: str | None) -> str:
    """Returns the column that holds numbers to predict: `label`, `labels` or `score`.

    Args:
        table: The data.
        column: The column to take.

    Raises:
        HfZipError: There is no such column, or it holds neither numbers nor lists of them.
    """
    features = table.rows.features
    found = [_existing(table, column)] if column else [n for n in _SCORES if n in features][:1]
    for name in found:
        inner = getattr(features[name], "feature", features[name])
        if _NUMBER_TYPE.fullmatch(_type(inner)):
            return name
    raise HfZipError(
        f"data {table.name!r} have no column of numbers {column or ', '.join(_SCORES)!r}, which a "
        f"regression takes; name one as label_column. Columns: {columns(table.rows)}"
    )


def _holds_labels(feature: Any) -> bool:
    return isinstance(feature, ClassLabel) or bool(_LABEL_TYPE.fullmatch(_type(feature)))


def label_column(table: Table, column: str | None) -> str:
    """Returns the column that holds labels: `label`, `labels`, or the only class-label column.

    Args:
        table: The data.
        column: The column to take.

    Raises:
        HfZipError: There is no such column, none that can be it, or it holds no labels.
    """
    features = table.rows.features
    if column is not None:
        _existing(table, column)
    else:
        classes = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
        candidates = [name for name in _LABELS if name in features]
        candidates = candidates or (classes if len(classes) == 1 else [])
        if not candidates:
            raise HfZipError(
                f"data {table.name!r} have no column 'label' and {len(classes)} class-label "
                f"columns; name one as label_column. Columns: {columns(table.rows)}"
            )
        column = candidates[0]
    feature = features[column]
    if not _holds_labels(feature):
        raise HfZipError(
            f"column {column!r} of data {table.name!r} holds {_type(feature)}; labels should be "
            "class labels, whole numbers or text"
        )
    return column


def columns(rows: Dataset) -> str:
    """Returns the columns and their types, for messages."""
    return ", ".join(f"{name} ({_type(feature)})" for name, feature in rows.features.items())


def _existing(table: Table, column: str) -> str:
    if column not in table.rows.column_names:
        raise unknown(f"column of data {table.name!r}", column, table.rows.column_names)
    return column


def _looks_like_image(value: Any) -> bool:
    """Tells whether a value is an image file, its path, its bytes, or its pixels."""
    if isinstance(value, str):
        return Path(value).suffix.lower() in PillowImage.registered_extensions()
    if isinstance(value, dict):
        return set(value) == {"bytes", "path"}
    if isinstance(value, bytes | PillowImage.Image):
        return True
    if not isinstance(value, list) and not hasattr(value, "__array__"):
        return False
    try:
        pixels = np.asarray(value)
    except ValueError:  # rows of different lengths
        return False
    return pixels.ndim in (2, 3) and np.issubdtype(pixels.dtype, np.number)


def _type(feature: Any) -> str:
    if isinstance(feature, Value):
        return str(feature.dtype)
    if isinstance(feature, List | LargeList):
        return f"list of {_type(feature.feature)}"
    return type(feature).__name__
