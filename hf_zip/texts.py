"""Texts as data sets hold them → inputs as a model takes them, padded batch by batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import ConcatDataset, Subset, default_collate

from hf_zip.columns import text_columns
from hf_zip.data import Table
from hf_zip.errors import HfZipError
from hf_zip.inputs import Inputs, Part, Row
from hf_zip.kinds import UNLABELLED
from hf_zip.recipe import IN_MEMORY
from hf_zip.tokens import ARGUMENTS, Tokens, tokenize


@dataclass(frozen=True)
class TextReader:
    """Reads texts as the models take them.

    Args:
        tokenizer: The models' tokenizer.
        limit: Tokens of a text that the models take at most; left out, any number.
        max_length: Tokens of a text that are kept at most, special ones included.
    """

    tokenizer: Any = None
    limit: int | None = None
    max_length: int = 128

    key: ClassVar[str] = "input_ids"
    in_memory: ClassVar[str] = (
        "a datasets.Dataset, a list of texts or of pairs of texts, or a list of dicts with "
        "'input_ids'"
    )

    def columns(
        self, table: Table, column: str | Sequence[str] | None, label_column: str | None = None
    ) -> tuple[str, ...]:
        """Returns the column of texts, or a pair of them; `text_columns` says what is refused."""
        return text_columns(table, column, label_column)

    def read(self, table: Table, columns: Sequence[str], rows: Sequence[int]) -> Tokens:
        """Returns the texts in some rows of a table; `tokenize` says what is refused."""
        values = [table.rows[column][:] for column in columns]
        texts = [tuple(column[row] for column in values) for row in rows]
        return tokenize(self.tokenizer, texts, self.length, table.name, rows)

    def drawn(self, texts: Sequence[str], name: str) -> Tokens:
        """Returns texts that were drawn; `tokenize` says what is refused.

        Args:
            texts: The texts.
            name: What they are called, for messages.
        """
        listed = [(text,) for text in texts]
        return tokenize(self.tokenizer, listed, self.length, name, range(len(texts)))

    def listed(self, items: Any) -> Part | None:
        """Returns texts, pairs of texts, or mappings with `input_ids`; else nothing."""
        if isinstance(items, Tensor):
            return None
        if all(isinstance(item, Mapping) and self.key in item for item in items):
            return self.stored(items)
        texts = [(item,) if isinstance(item, str) else item for item in items]
        if not all(isinstance(text, list | tuple) for text in texts):
            return None
        if len({len(text) for text in texts}) > 1 or len(texts[0]) not in (1, 2):
            return None
        return tokenize(self.tokenizer, texts, self.length, IN_MEMORY, range(len(texts)))

    def stored(self, items: Any) -> Part:
        """Returns token ids that are prepared already.

        Raises:
            HfZipError: They are not a list of ids for each input, or more than the models take.
        """
        rows = []
        for position, item in enumerate(items):
            row = {name: torch.as_tensor(item[name]) for name in ARGUMENTS if name in item}
            shape = tuple(row[self.key].shape)
            if len(shape) != 1 or not shape[0] or any(x.shape != shape for x in row.values()):
                raise HfZipError(
                    f"{', '.join(row)} of input {position} have the shapes "
                    f"{', '.join(str(tuple(x.shape)) for x in row.values())}; each should be "
                    "[tokens], for at least one token"
                )
            if self.limit is not None and shape[0] > self.limit:
                raise HfZipError(
                    f"input {position} has {shape[0]} tokens, but the models take at most "
                    f"{self.limit}; cut it off there"
                )
            rows.append({name: value.tolist() for name, value in row.items()})
        return Tokens(rows)

    def join(
        self,
        parts: Sequence[Part],
        description: Mapping[str, Any],
        targets: Sequence[Row] | None = None,
    ) -> Inputs:
        """Returns the texts of several data sets as one, the longest first.

        Texts of one length come to one batch, which needs little padding; and what does not fit
        into memory fails at once.

        Raises:
            HfZipError: They have to be padded, and the tokenizer cannot.
        """
        rows: ConcatDataset[Row] = ConcatDataset(parts)
        order = self.longest_first([rows[position] for position in range(len(rows))])
        ordered = None if targets is None else [targets[position] for position in order]
        return Inputs(Subset(rows, order), description, ordered, self.collate)

    def longest_first(self, rows: Sequence[Row]) -> list[int]:
        """Returns the positions of texts, the longest first; `join` says what is refused."""
        lengths = [len(row[self.key]) for row in rows]
        if len(set(lengths)) > 1 and not self._pads():
            lacking = "no tokenizer" if self.tokenizer is None else "no padding token"
            raise HfZipError(
                f"texts of different lengths have to be padded, but there is {lacking}; give a "
                "tokenizer that has a padding token (tokenizer.pad_token)"
            )
        return sorted(range(len(lengths)), key=lambda position: -lengths[position])

    def collate(self, rows: list[Row]) -> dict[str, Tensor]:
        """Returns a batch of texts, padded where there is a padding token."""
        targets = {
            name: _side_by_side([row[name] for row in rows])
            for name in rows[0]
            if name not in ARGUMENTS
        }
        inputs = [{name: row[name] for name in ARGUMENTS if name in row} for row in rows]
        if not self._pads():
            together = {name: torch.tensor([row[name] for row in inputs]) for name in inputs[0]}
            return {**together, **targets}
        if "attention_mask" not in self.tokenizer.model_input_names:
            # Models without a mask, such as SigLIP, are trained on texts of one length, and read
            # the padding too.
            bare = [{self.key: row[self.key]} for row in inputs]
            options = {"padding": "max_length", "max_length": self.length}
            return {**self.tokenizer.pad(bare, return_tensors="pt", **options), **targets}
        padded = self.tokenizer.pad(
            inputs,
            # On the left it would move the texts to other positions, which their models tell apart.
            padding_side="right",
            return_attention_mask=True,
            return_tensors="pt",
        )
        return {**padded, **targets}

    def _pads(self) -> bool:
        return getattr(self.tokenizer, "pad_token", None) is not None

    @property
    def length(self) -> int:
        """Tokens of a text that are kept at most, special ones included."""
        own = getattr(self.tokenizer, "model_max_length", self.max_length)
        return min(self.max_length, own, self.limit or self.max_length)


def _side_by_side(targets: Sequence[Any]) -> Tensor:
    """What is right for the inputs of a batch; lists of one value per token are padded."""
    first = targets[0]
    if isinstance(first, list) or (isinstance(first, Tensor) and first.dim()):
        values = [torch.as_tensor(target) for target in targets]
        return pad_sequence(values, batch_first=True, padding_value=UNLABELLED)
    together: Tensor = default_collate(list(targets))
    return together
