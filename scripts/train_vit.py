"""Train one small ViT from scratch on some classes of an image data set.

    python scripts/train_vit.py --data fashion_mnist --classes 0-4 --seed 0 --out models/low

The data are parquet files with the columns `image` and `label`. A fixed part of the training rows
is kept apart for validation and never trained on; the model and its image processor are written to
the folder, with `training.json` beside them, which says how it was trained and how well.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, disable_progress_bars
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional
from training import add_setting, fit, read_setting, split_validation, write_record
from transformers import (
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Images:
    """Labelled images, all of one size.

    Args:
        pixels: Pixels from 0 to 255.
        labels: Number of each image's class.
        names: Names of all classes.
    """

    pixels: UInt8[Tensor, "images channels height width"]
    labels: Int[Tensor, " images"]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, chosen: Int[Tensor, "rows"] | Bool[Tensor, " images"]) -> "Images":
        """Returns some of the images."""
        return Images(self.pixels[chosen], self.labels[chosen], self.names)

    def of_classes(self, classes: Sequence[int]) -> "Images":
        """Returns the images of some classes, renumbered from 0 in the order given."""
        wanted = torch.tensor(list(classes))
        chosen = self.rows(torch.isin(self.labels, wanted))
        labels = (chosen.labels[:, None] == wanted).long().argmax(dim=1)
        return Images(chosen.pixels, labels, tuple(self.names[c] for c in classes))


@dataclass(frozen=True)
class Setting:
    """How a model is made and trained.

    Args:
        width: Features of the stream.
        layers: Blocks.
        heads: Attention heads.
        patch: Height and width of a patch, in pixels.
        mlp_ratio: Hidden units of an MLP, relative to the width.
        epochs: Passes over the training images.
        batch: Images per step.
        learning_rate: Peak of the warmup and cosine schedule.
        weight_decay: Decay of AdamW.
        label_smoothing: Share of the target that is spread over all labels.
        shift: Random crops move an image by up to this many pixels.
    """

    width: int = 96
    layers: int = 6
    heads: int = 4
    patch: int = 7
    mlp_ratio: float = 2.0
    epochs: int = 40
    batch: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.0
    shift: int = 2


def main() -> None:
    """Trains and saves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folder or files")
    parser.add_argument("--classes", type=parse_classes, required=True, help="as 0-4 or 1,3,5")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    add_setting(parser, Setting())
    arguments = parser.parse_args()
    disable_progress_bars()
    torch.set_num_threads(arguments.threads)
    images = read_images(data_files(arguments.data, "train"))
    training, validation = split_validation(images)
    record = train_and_save(
        training,
        validation,
        arguments.classes,
        read_setting(arguments, Setting()),
        arguments.seed,
        arguments.out,
    )
    print(
        f"{arguments.out}: {record['seconds']:.0f} s, "
        f"{record['validation_accuracy']:.1%} on {record['validation_images']} validation images"
    )


def parse_classes(text: str) -> tuple[int, ...]:
    """Returns class numbers from a list with ranges.

    Example:
        >>> parse_classes("0-2,7")
        (0, 1, 2, 7)
    """
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return tuple(numbers)


def data_files(paths: Sequence[Path], split: str) -> list[Path]:
    """Returns the parquet files of one split: those of folders by name, others as they are."""
    found: list[Path] = []
    for path in paths:
        found += sorted(path.glob(f"{split}*.parquet")) if path.is_dir() else [path]
    if not found:
        raise SystemExit(f"no {split}*.parquet in {', '.join(map(str, paths))}")
    return found


def read_images(
    files: Sequence[Path],
    channels: int | None = None,
    size: int | None = None,
    limit: int | None = None,
) -> Images:
    """Returns the images of parquet files.

    Args:
        files: The files.
        channels: 1 or 3; left out, as many as the first image has.
        size: Height and width to resize to; left out, the images must have one size.
        limit: Take so many, evenly spaced; left out, all.
    """
    table = Dataset.from_parquet([str(file) for file in files])
    feature = table.features["label"]
    if limit is not None and limit < len(table):
        table = table.select([i * len(table) // limit for i in range(limit)])
    labels = torch.tensor(table["label"][:])
    named = isinstance(feature, ClassLabel)
    names = feature.names if named else [str(i) for i in range(int(labels.max()) + 1)]
    images: list[Image.Image] = table["image"][:]
    mode = _MODES[channels] if channels else ("L" if images[0].mode == "L" else "RGB")
    arrays = []
    for image in images:
        if size is not None and image.size != (size, size):
            image = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
        arrays.append(np.asarray(image.convert(mode)))
    pixels = torch.from_numpy(np.stack(arrays))
    pixels = pixels[:, None] if mode == "L" else pixels.permute(0, 3, 1, 2).contiguous()
    return Images(pixels, labels, tuple(names))


def processor_for(images: Images) -> ViTImageProcessorPil:
    """Returns the image processor that prepares images as `pixel_values` does."""
    channels, size = images.pixels.shape[1:3]
    half = [0.5] * channels
    return ViTImageProcessorPil(
        size={"height": size, "width": size}, image_mean=half, image_std=half
    )


def pixel_values(pixels: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Returns what a model takes: pixels mapped to [-1, 1]."""
    return pixels.float() / 127.5 - 1


def augment(
    pixels: Float[Tensor, "images channels height width"], shift: int
) -> Float[Tensor, "images channels height width"]:
    """Returns every image moved by up to `shift` pixels and, half of the time, mirrored."""
    count, channels, height, width = pixels.shape
    padded = functional.pad(pixels, (shift,) * 4, mode="reflect")
    down, right = torch.randint(0, 2 * shift + 1, (2, count, 1))
    columns = torch.arange(width).expand(count, width)
    columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns) + right
    rows = torch.arange(height) + down
    return padded[
        torch.arange(count)[:, None, None, None],
        torch.arange(channels)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def train(images: Images, setting: Setting, seed: int) -> ViTForImageClassification:
    """Returns a model trained on all the images."""
    channels, size = images.pixels.shape[1:3]
    torch.manual_seed(seed)
    model = ViTForImageClassification(
        ViTConfig(
            hidden_size=setting.width,
            num_hidden_layers=setting.layers,
            num_attention_heads=setting.heads,
            intermediate_size=round(setting.mlp_ratio * setting.width),
            image_size=size,
            patch_size=setting.patch,
            num_channels=channels,
            id2label=dict(enumerate(images.names)),
            label2id={name: i for i, name in enumerate(images.names)},
        )
    )
    pixels = pixel_values(images.pixels)

    def loss(chosen: Tensor) -> Tensor:
        logits = model(augment(pixels[chosen], setting.shift)).logits
        return functional.cross_entropy(
            logits, images.labels[chosen], label_smoothing=setting.label_smoothing
        )

    fit(model, len(pixels), setting, loss)
    return model


@torch.inference_mode()
def accuracy(model: PreTrainedModel, images: Images) -> float:
    """Returns the share of images that a model answers right, in [0, 1]."""
    right = 0
    for pixels, labels in zip(images.pixels.split(256), images.labels.split(256), strict=True):
        right += int((model(pixel_values(pixels)).logits.argmax(dim=1) == labels).sum())
    return right / len(images)


def train_and_save(
    training: Images,
    validation: Images,
    classes: Sequence[int],
    setting: Setting,
    seed: int,
    folder: Path,
) -> dict[str, Any]:
    """Trains on some classes, writes model, processor and record, and returns the record.

    Args:
        training: Images to train on, of all classes.
        validation: Images to measure the accuracy on, of all classes.
        classes: The classes to learn.
        setting: How to make and train the model.
        seed: Decides initialisation, order and augmentation.
        folder: Folder to write.
    """
    training, validation = training.of_classes(classes), validation.of_classes(classes)
    started = time.perf_counter()
    model = train(training, setting, seed)
    seconds = time.perf_counter() - started
    return save_trained(model, training, validation, classes, setting, seed, seconds, folder)


def save_trained(
    model: PreTrainedModel,
    training: Images,
    validation: Images,
    classes: Sequence[int],
    setting: Any,
    seed: int,
    seconds: float,
    folder: Path,
    **more: Any,
) -> dict[str, Any]:
    """Writes a trained classifier of images, its processor and record, and returns the record.

    Args:
        model: The classifier.
        training: The images that it was trained on.
        validation: Images of the same classes to measure the accuracy on.
        classes: The classes, by their numbers in the data set.
        setting: How it was made and trained.
        seed: What decided initialisation, order and augmentation.
        seconds: How long it took.
        folder: Folder to write.
        **more: What else the record should hold.
    """
    record = {
        "classes": list(classes),
        "seed": seed,
        "setting": asdict(setting),
        "seconds": seconds,
        "training_images": len(training),
        "validation_images": len(validation),
        "validation_accuracy": accuracy(model, validation),
        **more,
    }
    model.save_pretrained(folder)
    processor_for(training).save_pretrained(folder)
    write_record(folder, record)
    return record


if __name__ == "__main__":
    main()
