"""Images as data sets hold them → pixel values as a model takes them, one at a time."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import ConcatDataset
from transformers import PreTrainedTokenizerBase

from hf_zip.columns import image_column
from hf_zip.data import Table
from hf_zip.errors import HfZipError
from hf_zip.generated import generated_image
from hf_zip.inputs import Inputs, Part, Row
from hf_zip.recipe import IN_MEMORY

_MODES = {1: "L", 3: "RGB"}
GENERATED_SIZE = 224  # pixels, where models do not say what they take
_WIDE = ("I", "F")  # modes of more than 8 bits, which Pillow would clip


@dataclass(frozen=True)
class ImageReader:
    """Reads images as the models take them.

    Args:
        processor: The models' image processor.
        num_channels: Channels that the models take; left out, as many as the processor normalises.
        image_size: Height and width that the models take, or one number for both; left out, those
            of the first input.
    """

    processor: Any = None
    num_channels: int | None = None
    image_size: int | Sequence[int] | None = None

    key: ClassVar[str] = "pixel_values"
    in_memory: ClassVar[str] = (
        "a datasets.Dataset, a tensor of pixel values [inputs, channels, height, width], a list of "
        "PIL images, or a list of dicts with 'pixel_values'"
    )

    def columns(
        self, table: Table, column: str | Sequence[str] | None, label_column: str | None = None
    ) -> tuple[str, ...]:
        """Returns the column that holds images; `image_column` says what is refused."""
        return (image_column(table, column),)

    def read(self, table: Table, columns: Sequence[str], rows: Sequence[int]) -> Part:
        """Returns the images in some rows of a table; `PreparedImages` says what is refused."""
        return self._prepared(table.rows[columns[0]], rows, table.name, table.folder)

    def generated(self, name: str, count: int, seed: int) -> Part:
        """Returns the first images of a generator, of the models' size and channels.

        They are drawn when they are asked for. Where the models say no size, they have
        `GENERATED_SIZE`. `PreparedImages` says what is refused.

        Args:
            name: One of `hf_zip.generated.GENERATORS`.
            count: How many images.
            seed: Decides what they show.
        """
        channels = self.num_channels or _normalised_channels(self.processor)
        _, *found = _shape(channels, self.image_size)
        height, width = (GENERATED_SIZE if size is None else size for size in found)
        drawn = _Generated(name, seed, height, width, channels)
        part = self._prepared(drawn, range(count), name, None)
        part.notes = {"seed": seed, "size": [height, width]}
        return part

    def drawn(self, images: Sequence[np.ndarray], name: str) -> Part:
        """Returns images that were drawn; `PreparedImages` says what is refused.

        Args:
            images: Pixels from 0 to 255, `[height, width, channels]`.
            name: What the data are called, for messages.
        """
        return self._prepared(images, range(len(images)), name, None)

    def listed(self, items: Any) -> Part | None:
        """Returns PIL images, pixel values, or mappings that have these; else nothing."""
        if isinstance(items, Tensor):
            return StoredPixels(items, self.image_size)
        if all(isinstance(item, Image.Image) for item in items):
            return self._prepared(items, range(len(items)), IN_MEMORY, None)
        if all(isinstance(item, Mapping) and self.key in item for item in items):
            return self.stored(items)
        return None

    def stored(self, items: Any) -> Part:
        """Returns pixel values that are prepared already; `StoredPixels` says what is refused."""
        whole = isinstance(items, Dataset)
        values = items[self.key] if whole else [item[self.key] for item in items]
        return StoredPixels(values, self.image_size)

    def join(
        self,
        parts: Sequence[Part],
        description: Mapping[str, Any],
        targets: Sequence[Row] | None = None,
    ) -> Inputs:
        """Returns the images of several data sets as one.

        Raises:
            HfZipError: Their shapes differ.
        """
        for position, part in enumerate(parts[1:], start=1):
            shape = tuple(parts[0][0][self.key].shape)
            check_shape(part[0][self.key], shape, f"the first input of data set {position}")
        return Inputs(ConcatDataset(parts), description, targets)

    def _prepared(self, values: Any, rows: Sequence[int], name: str, folder: Path | None) -> Part:
        return PreparedImages(
            values, rows, self.processor, name, folder, self.num_channels, self.image_size
        )


class PreparedImages(Part):
    """Images that the processor prepares when they are asked for.

    The first one is prepared at once: what is wrong with all of them shows there.

    Args:
        values: Images: Pillow's, their files' paths or bytes, or pixels from 0 to 255.
        rows: Which of them, in order.
        processor: The models' image processor.
        name: What the data are called, for messages.
        folder: Where relative paths start.
        num_channels: Channels that the models take; left out, as many as the processor normalises.
        image_size: Height and width that the models take, or one number for both; left out, those
            of the first image.

    Raises:
        HfZipError: There is no image processor, or the first image does not come out of it as the
            models take it.
    """

    def __init__(
        self,
        values: Any,
        rows: Sequence[int],
        processor: Any,
        name: str,
        folder: Path | None = None,
        num_channels: int | None = None,
        image_size: int | Sequence[int] | None = None,
    ) -> None:
        if processor is None or isinstance(processor, PreTrainedTokenizerBase):
            raise HfZipError(
                f"data {name!r} hold images, but the models have "
                f"{'no' if processor is None else 'a tokenizer and no'} image processor; save the "
                "one that they were trained with beside the first model"
            )
        self._channels = num_channels or _normalised_channels(processor)
        if self._channels not in _MODES:
            raise HfZipError(f"images have 1 or 3 channels, not {self._channels}")
        self._values, self._rows, self._processor = values, rows, processor
        self._name, self._folder = name, folder
        self._shape = _shape(self._channels, image_size)
        self._shape = tuple(self[0]["pixel_values"].shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> Row:
        row = self._rows[position]
        where = f"row {row} of data {self._name!r}"
        try:
            image = _open(self._values[row], self._folder)
            image.load()
        except (OSError, ValueError) as error:
            raise HfZipError(f"{where} is no readable image: {error}") from error
        if image.mode.startswith(_WIDE):
            raise HfZipError(
                f"{where} is an image of mode {image.mode}, with more than 8 bits per pixel; "
                "convert it to 8 bits"
            )
        image = image.convert(_MODES[self._channels])
        try:
            pixels = self._processor(images=image, return_tensors="pt")["pixel_values"][0]
        except (ValueError, TypeError, KeyError) as error:
            raise HfZipError(
                f"{where}: the image processor cannot prepare an image of {self._channels} "
                f"channels: {error}"
            ) from error
        return {"pixel_values": check_shape(pixels, self._shape, where)}


@dataclass(frozen=True)
class _Generated:
    """Images of a generator by number; the fields are arguments of `generated_image`."""

    name: str
    seed: int
    height: int
    width: int
    channels: int

    def __getitem__(self, number: int) -> np.ndarray:
        shape = (self.height, self.width, self.channels)
        return generated_image(self.name, self.seed, number, *shape)


class StoredPixels(Part):
    """Pixel values that are prepared already.

    Args:
        values: One array `[channels, height, width]` per input, or one tensor of them.
        image_size: Height and width that the models take, or one number for both; left out, those
            of the first input.

    Raises:
        HfZipError: The first input is not what the models take.
    """

    def __init__(self, values: Any, image_size: int | Sequence[int] | None = None) -> None:
        self._values = values
        self._shape = _shape(None, image_size)
        self._shape = tuple(self[0]["pixel_values"].shape)

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, position: int) -> Row:
        pixels = torch.as_tensor(self._values[position])
        if pixels.dim() != 3 or not pixels.is_floating_point():
            raise HfZipError(
                f"pixel values of input {position} are {str(pixels.dtype).removeprefix('torch.')} "
                f"of shape {tuple(pixels.shape)}; they should be floating-point [channels, height, "
                "width], as an image processor returns them"
            )
        return {"pixel_values": check_shape(pixels, self._shape, f"input {position}")}


def check_shape(pixels: Tensor, expected: tuple[int | None, ...], where: str) -> Tensor:
    """Returns the pixel values if they have the expected shape, in which None stands for any.

    Raises:
        HfZipError: They have another one.
    """
    found = tuple(pixels.shape)
    fits = len(found) == len(expected) and all(
        want in (None, size) for want, size in zip(expected, found, strict=True)
    )
    if not fits:
        raise HfZipError(
            f"{where} has pixel values of shape {found}, but should have "
            f"{tuple('any' if size is None else size for size in expected)}; use an image "
            "processor that resizes to that (do_resize, size), or images of one size"
        )
    return pixels


def _shape(channels: int | None, size: int | Sequence[int] | None) -> tuple[int | None, ...]:
    if size is None:
        return (channels, None, None)
    return (channels, size, size) if isinstance(size, int) else (channels, *size)


def _normalised_channels(processor: Any) -> int:
    mean = getattr(processor, "image_mean", None)
    return len(mean) if isinstance(mean, list | tuple) else 3


def _open(value: Any, folder: Path | None) -> Image.Image:
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        image: Image.Image = Image.open((folder or Path()) / Path(value).expanduser())
    elif isinstance(value, bytes):
        image = Image.open(io.BytesIO(value))
    elif isinstance(value, Image.Image):
        image = value
    else:
        return _from_array(np.asarray(value))
    # A camera's note on which way is up, as the datasets library heeds it.
    return ImageOps.exif_transpose(image)


def _from_array(pixels: np.ndarray) -> Image.Image:
    if pixels.ndim == 3 and pixels.shape[0] in _MODES and pixels.shape[2] not in _MODES:
        pixels = pixels.transpose(1, 2, 0)
    flat = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in _MODES)
    whole = np.issubdtype(pixels.dtype, np.integer)
    if not flat or not whole or not pixels.size or pixels.min() < 0 or pixels.max() > 255:
        raise HfZipError(
            f"it holds {pixels.dtype} of shape {pixels.shape}; pixels should be whole numbers from "
            "0 to 255, [height, width] or [height, width, channels]"
        )
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    return Image.fromarray(pixels.astype(np.uint8))
