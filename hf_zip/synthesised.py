"""An image classifier → images that it synthesises: drawn ones, until it is sure of a label."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object, tqdm
from numpy import ndarray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from hf_zip.collect import make_accelerator
from hf_zip.errors import HfZipError
from hf_zip.generated import PREFIX, SYNTHESISED, generated_image
from hf_zip.generated.inverted import Inversion, invert
from hf_zip.images import GENERATED_SIZE, ImageReader
from hf_zip.kinds import head_kind
from hf_zip.processors import image_processor
from hf_zip.sources import Source, load_source

# Images that are always synthesised together, whether all of them are asked for or not: statistics
# of a batch are those of all its images, and what a batch holds may change the rounding.
_BLOCK = 32
_START = f"{PREFIX}dead_leaves"
_WITH_STATISTICS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def synthesised_images(
    reference: str,
    count: int,
    seed: int,
    *,
    progress: bool = True,
    allow_pickle: bool = False,
) -> tuple[list[ndarray], dict[str, Any]]:
    """Returns images that a classifier is sure of, and for their description how they were made.

    Each begins as one that is drawn by a rule, and its pixels are changed by gradients until the
    model gives it a label that was drawn for it, all labels equally often. Where a model has batch
    normalisations, the statistics of the batch are drawn to the running ones, too. Seed and number
    decide an image, on one kind of device: neither the number of images nor that of processes does.

    Args:
        reference: Folder or Hub id of the model.
        count: How many images.
        seed: Decides them, with their numbers.
        progress: Show a progress bar, on the main process.
        allow_pickle: Read weights in pickles where there are no others.

    Returns:
        Images `[height, width, channels]` of the size that the model takes, with pixels from 0 to
        255, and plain values for their description.

    Raises:
        HfZipError: The model is not in reach or cannot be loaded, it takes no images, its head does
            not choose among labels, or there is no image processor that says how pixels are read.
    """
    source = load_source(reference, allow_pickle=allow_pickle)
    _check_head(source)
    black, white = _ends(source)
    accelerator = make_accelerator()
    model, inversion = source.model.to(accelerator.device), Inversion()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    starts = range(0, count, _BLOCK)[accelerator.process_index :: accelerator.num_processes]
    own = [
        (start, _block(model, (black, white), range(start, start + _BLOCK), seed, inversion))
        for start in tqdm(starts, desc="synthesising images", disable=not progress, leave=False)
    ]
    blocks = dict(gather_object(own))
    images = list(chain.from_iterable(blocks[start] for start in sorted(blocks)))[:count]
    known = {"model_sha256": source.sha256, "model_revision": source.revision}
    version = {key: value for key, value in known.items() if value is not None}
    size = list(black.shape[1:])
    return images, {**version, "seed": seed, "synthesised_size": size, **asdict(inversion)}


def _check_head(source: Source) -> None:
    model, kind = source.model, head_kind(source.model)
    if model.main_input_name != ImageReader.key:
        raise HfZipError(
            f"{source.reference!r} takes {model.main_input_name}, so {SYNTHESISED} cannot "
            "synthesise images with it; name a model that takes images"
        )
    if kind != "classification":
        raise HfZipError(
            f"the head of {source.reference!r}, a {type(model).__name__}, is of kind {kind} and "
            f"does not choose one of several labels, so {SYNTHESISED} cannot synthesise images "
            "with it; name a classifier, or a generator (generated:NAME)"
        )


def _ends(source: Source) -> tuple[Tensor, Tensor]:
    """What the model's image processor makes of black and of white, and so of all in between."""
    config = getattr(source.model.config, "vision_config", source.model.config)
    shape = {name: getattr(config, name, None) for name in ("num_channels", "image_size")}
    reader = ImageReader(image_processor(source.processor), **shape)
    size = (GENERATED_SIZE, GENERATED_SIZE)
    ends = [np.full((*size, 3), level, np.uint8) for level in (0, 255)]
    read = reader.drawn(ends, source.reference)
    black, white = (read[k][reader.key] for k in range(2))
    plain = all(torch.allclose(end, end[:, :1, :1].expand_as(end)) for end in (black, white))
    if not plain or (black == white).any():
        raise HfZipError(
            f"the image processor of {source.reference!r} does more to pixels than to scale them, "
            f"so {SYNTHESISED} cannot tell which image gives what the model takes; save one that "
            "does not"
        )
    return black, white


def _block(
    model: PreTrainedModel,
    ends: tuple[Tensor, Tensor],
    numbers: Sequence[int],
    seed: int,
    inversion: Inversion,
) -> list[ndarray]:
    """The images of a seed with these numbers."""
    black, white = (end.to(model.device) for end in ends)
    channels, height, width = black.shape
    drawn = [generated_image(_START, seed, own, height, width, channels) for own in numbers]
    images = torch.from_numpy(np.stack(drawn)).to(model.device).movedim(3, 1) / 255
    labels = np.random.default_rng(seed).permutation(model.config.num_labels)
    wanted = torch.from_numpy(labels[np.array(numbers) % len(labels)]).to(model.device)
    with batch_statistics(model) as statistics:

        def loss(found: Tensor) -> Tensor:
            statistics.clear()
            logits = model(pixel_values=torch.lerp(black, white, found)).logits
            return cross_entropy(logits, wanted, reduction="none") + sum(statistics)

        found = invert(loss, images, np.random.default_rng([seed, numbers[0], 1]), inversion)
    pixels = (255 * found).round().to(torch.uint8).movedim(1, 3).cpu().numpy()
    return list(pixels)


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[list[Tensor]]:
    """Yields a list that grows, as a model runs, by how far batches are from running statistics.

    There is one number for each batch normalisation: the mean over its channels of the squared
    differences between the means, and between the standard deviations, of the batch and of what the
    model was trained on, where the standard deviation of that is 1.

    Source: DeepInversion (https://arxiv.org/abs/1912.08795), equation 4; there of variances, and
    not relative to those of the training.

    Args:
        model: The model.
    """
    found: list[Tensor] = []

    def note(module: Any, given: tuple[Tensor, ...]) -> None:
        rows = given[0].transpose(0, 1).flatten(1)
        spread = (module.running_var + module.eps).sqrt()
        means = (rows.mean(dim=1) - module.running_mean) / spread
        spreads = (rows.var(dim=1, correction=0) + module.eps).sqrt() / spread - 1
        found.append((means.square() + spreads.square()).mean())

    modules = [own for own in model.modules() if isinstance(own, _WITH_STATISTICS)]
    handles = [m.register_forward_pre_hook(note) for m in modules if m.track_running_stats]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
