"""Images with texts as data sets hold them → what a model of both takes, the texts padded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from datasets import Dataset
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, default_collate

from hf_zip.columns import pair_columns
from hf_zip.data import Table
from hf_zip.errors import HfZipError
from hf_zip.images import ImageReader
from hf_zip.inputs import Inputs, Part, Row
from hf_zip.texts import TextReader


@dataclass(frozen=True)
class PairReader:
    """Reads images with texts as the models take them.

    Args:
        images: Reads the images.
        texts: Reads the texts.
    """

    images: ImageReader
    texts: TextReader

    key: ClassVar[str] = ImageReader.key
    in_memory: ClassVar[str] = (
        "a datasets.Dataset of images and texts, a list of pairs of a PIL image and a text, or a "
        "list of dicts with 'pixel_values' and 'input_ids'"
    )

    def columns(
        self, table: Table, column: str | Sequence[str] | None, label_column: str | None = None
    ) -> tuple[str, ...]:
        """Returns the columns of images and of texts; `pair_columns` says what is refused."""
        return pair_columns(table, column, label_column)

    def read(self, table: Table, columns: Sequence[str], rows: Sequence[int]) -> Part:
        """Returns the images and texts in some rows of a table."""
        return PairedInputs(
            self.images.read(table, columns[:1], rows), self.texts.read(table, columns[1:], rows)
        )

    def listed(self, items: Any) -> Part | None:
        """Returns pairs of a PIL image and a text, or mappings that have both; else nothing."""
        if isinstance(items, Tensor):
            return None
        if all(isinstance(item, Mapping) and self.key in item for item in items):
            return self.stored(items)
        if not all(isinstance(item, list | tuple) and len(item) == 2 for item in items):
            return None
        images, texts = zip(*items, strict=True)
        if not all(isinstance(text, str) for text in texts):
            return None
        listed, tokens = self.images.listed(images), self.texts.listed(texts)
        return None if listed is None or tokens is None else PairedInputs(listed, tokens)

    def stored(self, items: Any) -> Part:
        """Returns images and texts that are prepared already.

        Raises:
            HfZipError: There is an image without a text, or either is not what the models take.
        """
        columns = [items.column_names] if isinstance(items, Dataset) else items
        for position, item in enumerate(columns):
            if self.texts.key not in item:
                raise HfZipError(
                    f"input {position} has {', '.join(item)}, but the models take "
                    f"{self.images.key} and {self.texts.key} together; give both"
                )
        return PairedInputs(self.images.stored(items), self.texts.stored(items))

    def join(
        self,
        parts: Sequence[Part],
        description: Mapping[str, Any],
        targets: Sequence[Row] | None = None,
    ) -> Inputs:
        """Returns the images and texts of several data sets as one, the longest texts first.

        Raises:
            HfZipError: Texts have to be padded and the tokenizer cannot, or the shapes of images
                differ.
        """
        pairs = [part for part in parts if isinstance(part, PairedInputs)]
        self.images.join([part.images for part in pairs], {})
        texts: ConcatDataset[Row] = ConcatDataset([part.texts for part in pairs])
        order = self.texts.longest_first([texts[position] for position in range(len(texts))])
        ordered = None if targets is None else [targets[position] for position in order]
        rows: ConcatDataset[Row] = ConcatDataset(pairs)
        return Inputs(Subset(rows, order), description, ordered, self.collate)

    def collate(self, rows: list[Row]) -> dict[str, Tensor]:
        """Returns a batch of images with texts, the texts padded where there is a padding token."""
        images = [{self.images.key: row[self.images.key]} for row in rows]
        texts = [{name: x for name, x in row.items() if name != self.images.key} for row in rows]
        return {**default_collate(images), **self.texts.collate(texts)}


class PairedInputs(Part):
    """Images with texts.

    Args:
        images: The images.
        texts: As many texts.
    """

    def __init__(self, images: Part, texts: Part) -> None:
        self.images, self.texts = images, texts
        self.notes = {**images.notes, **texts.notes}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> Row:
        return {**self.images[position], **self.texts[position]}
