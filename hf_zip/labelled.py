"""Labelled data → inputs and what is right for them, by the kind of question that is asked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from hf_zip.columns import label_column, score_column, tag_column, word_column
from hf_zip.data import Table
from hf_zip.errors import HfZipError
from hf_zip.inputs import Part, Reader, Row
from hf_zip.kinds import UNLABELLED, Kind, asks_of_tokens, target_names
from hf_zip.labels import label_positions, scores, tag_positions
from hf_zip.recipe import EvaluationSpec
from hf_zip.texts import TextReader
from hf_zip.tokens import Tokens

MASKED = 0.15  # share of the tokens of a text, as masked language models are trained


@dataclass(frozen=True)
class Labelled:
    """Labelled rows of a data set.

    Args:
        part: The inputs.
        targets: For every input what is right, by the name that models take it under.
        columns: The columns that the inputs come from.
        notes: Where the labels come from, as plain values.
    """

    part: Part
    targets: Sequence[Row]
    columns: tuple[str, ...]
    notes: Mapping[str, Any] = field(default_factory=dict)


def read_labelled(
    table: Table,
    rows: Sequence[int],
    reader: Reader,
    spec: EvaluationSpec,
    labels: Sequence[str],
    kind: Kind,
) -> Labelled:
    """Returns some rows of a data set with what is right for them.

    Args:
        table: The data.
        rows: Which rows.
        reader: Reads data as the models take them.
        spec: The task, and the columns where they are named.
        labels: The task's labels, in the order of its rows in the merged head.
        kind: What its heads answer.

    Raises:
        HfZipError: There are no columns as the kind needs them, a row has no label or an unknown
            one, or data of this kind cannot be read from columns.
    """
    if kind not in _READERS:
        names = " and ".join(map(repr, (reader.key, *target_names(kind))))
        raise HfZipError(
            f"data {table.name!r} are named for task {spec.task!r}, but what is right for {kind} "
            f"cannot be read from columns; prepare it in memory, as a list of dicts with {names} "
            f"(hf_zip.merge(..., evaluation={{{spec.task!r}: [...]}}))"
        )
    return _READERS[kind](table, rows, reader, spec, labels)


def _classified(
    table: Table, rows: Sequence[int], reader: Reader, spec: EvaluationSpec, labels: Sequence[str]
) -> Labelled:
    columns = reader.columns(table, spec.column, spec.label_column)
    column = label_column(table, spec.label_column)
    positions, matched_by = label_positions(table, column, labels, spec.task)
    return Labelled(
        reader.read(table, columns, rows),
        [{"labels": positions[row]} for row in rows],
        columns,
        {"label_column": column, "labels_matched_by": matched_by},
    )


def _scored(
    table: Table, rows: Sequence[int], reader: Reader, spec: EvaluationSpec, labels: Sequence[str]
) -> Labelled:
    column = score_column(table, spec.label_column)
    columns = reader.columns(table, spec.column, column)
    found = scores(table, column, labels)
    return Labelled(
        reader.read(table, columns, rows),
        [{"labels": found[row]} for row in rows],
        columns,
        {"label_column": column},
    )


def _tagged(
    table: Table, rows: Sequence[int], reader: Reader, spec: EvaluationSpec, labels: Sequence[str]
) -> Labelled:
    """The first token of every word has its label, the other tokens have none."""
    if not isinstance(reader, TextReader):
        raise HfZipError(
            f"task {spec.task!r} asks of tokens, but the models take {reader.key}; its data cannot "
            "be read from columns"
        )
    column = tag_column(table, spec.label_column)
    words = word_column(table, spec.column, column)
    tags, matched_by = tag_positions(table, column, labels, spec.task)
    given = table.rows[words][:]
    for row in rows:
        if len(tags[row]) != len(given[row] or ()):
            raise HfZipError(
                f"row {row} of data {table.name!r} has {len(given[row] or ())} words in "
                f"{words!r} and {len(tags[row])} labels in {column!r}; each word should have one"
            )
    part = reader.read(table, (words,), rows)
    if not part.words:
        raise HfZipError(
            f"the tokenizer {type(reader.tokenizer).__name__} does not tell which word a token "
            f"belongs to, so the labels of data {table.name!r} cannot be given to tokens; use a "
            "fast tokenizer (of the tokenizers library)"
        )
    found = [
        {"labels": _of_first_tokens(own, tags[row])}
        for own, row in zip(part.words, rows, strict=True)
    ]
    return Labelled(
        part, found, (words,), {"label_column": column, "labels_matched_by": matched_by}
    )


def _of_first_tokens(words: Sequence[int | None], tags: Sequence[int]) -> list[int]:
    """The label of each token: its word's for the first of a word, else none."""
    before: list[int | None] = [None, *words[:-1]]
    return [
        UNLABELLED if word is None or word == previous else tags[word]
        for word, previous in zip(words, before, strict=True)
    ]


def _masked(
    table: Table, rows: Sequence[int], reader: Reader, spec: EvaluationSpec, labels: Sequence[str]
) -> Labelled:
    """A share of every text's own tokens is masked, at least one, and these are to be found.

    Which ones depends on the row only, so that they are the same for every model and run.
    """
    if not isinstance(reader, TextReader) or getattr(reader.tokenizer, "mask_token", None) is None:
        raise HfZipError(
            f"task {spec.task!r} asks for masked tokens, but the models have no tokenizer with a "
            "mask token; save the one that they were trained with beside the first model"
        )
    columns = reader.columns(table, spec.column, spec.label_column)
    part, targets = reader.read(table, columns, rows), []
    special, mask = {*reader.tokenizer.all_special_ids}, reader.tokenizer.mask_token_id
    inputs = []
    for position, row in enumerate(rows):
        ids = part[position]["input_ids"]
        own = [place for place, token in enumerate(ids) if token not in special]
        if not own:
            raise HfZipError(
                f"row {row} of data {table.name!r} has no token that could be masked; leave it out"
            )
        draw = np.random.default_rng(row)
        hidden = {*draw.choice(own, size=max(1, round(MASKED * len(own))), replace=False).tolist()}
        shown = [mask if place in hidden else token for place, token in enumerate(ids)]
        wanted = [t if place in hidden else UNLABELLED for place, t in enumerate(ids)]
        inputs.append({**part[position], "input_ids": shown})
        targets.append({"labels": wanted})
    return Labelled(Tokens(inputs, part.notes), targets, columns, {"masked": MASKED})


_READERS: Mapping[Kind, Callable[..., Labelled]] = {
    "classification": _classified,
    "regression": _scored,
    "token-classification": _tagged,
    "masked-lm": _masked,
}


def prepared_targets(items: Any, kind: Kind, task: str) -> list[Row]:
    """Returns what is right for inputs that are prepared already.

    Args:
        items: The inputs, a list or a data set of mappings, each with what models of this kind take
            as labels.
        kind: What the task's heads answer.
        task: The task's name.

    Raises:
        HfZipError: An input has no label, or not one for each of its tokens where the task asks of
            tokens.
    """
    names = target_names(kind)
    for name in names:
        without = [position for position, item in enumerate(items) if name not in item]
        if without:
            raise HfZipError(
                f"{len(without)} of {len(items)} inputs of the evaluation data of task {task!r} "
                f"have no {name!r} (the first is input {without[0]}); give every input "
                f"{_WANTED.get(kind, _POSITION)}"
            )
    targets = [{name: _value(item[name], kind) for name in names} for item in items]
    if asks_of_tokens(kind) and names == ("labels",):
        for position, (item, own) in enumerate(zip(items, targets, strict=True)):
            shape, tokens = tuple(own["labels"].shape), len(item["input_ids"])
            if shape != (tokens,):
                raise HfZipError(
                    f"'labels' of input {position} of the evaluation data of task {task!r} have "
                    f"shape {shape}, but it has {tokens} tokens; give {_WANTED[kind]}"
                )
    return targets


_POSITION = "the position of its label"
_WANTED: Mapping[Kind, str] = {
    "regression": "its number, or its numbers",
    "multi-label-classification": "a zero or a one for each label",
    "token-classification": f"a label for every token, {UNLABELLED} where a token has none",
    "masked-lm": f"the id of every masked token, {UNLABELLED} for the others",
    "question-answering": "the first and the last token of its answer",
}


def _value(value: Any, kind: Kind) -> Any:
    if kind in ("classification", "question-answering"):
        return int(value)
    dtype = torch.float64 if kind == "regression" else torch.int64
    return torch.as_tensor(value, dtype=dtype)
