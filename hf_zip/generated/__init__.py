"""Inputs that are drawn instead of taken from data: their names, and images by a rule."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from hf_zip.errors import HfZipError, unknown
from hf_zip.generated.dead_leaves import dead_leaves
from hf_zip.generated.fractals import fractal
from hf_zip.generated.noise import noise

PREFIX = "generated:"
SAMPLED = "sampled:"  # texts that the model draws which follows
RECOMBINED = "recombined:"  # texts of the words of the corpus which follows
SYNTHESISED = "synthesised:"  # images that the model is sure of which follows
TEXTS = (SAMPLED, RECOMBINED)
FROM = (*TEXTS, SYNTHESISED)  # a model or a corpus
Draw = Callable[[np.random.Generator, int, int, int], ndarray]

GENERATORS: Mapping[str, Draw] = {
    f"{PREFIX}dead_leaves": dead_leaves,
    f"{PREFIX}noise": noise,
    f"{PREFIX}fractals": fractal,
}


def is_generated(data: str) -> bool:
    """Tells whether a name of data says that they are drawn, by something known or not."""
    return data.startswith((PREFIX, *FROM))


def parts_of(data: str) -> tuple[str, str]:
    """Returns how inputs are drawn and from what; of other names of data nothing and the name.

    Example:
        >>> parts_of("sampled:org/base")
        ('sampled:', 'org/base')
    """
    prefix = next((known for known in FROM if data.startswith(known)), "")
    return prefix, data.removeprefix(prefix)


def check_generators(data: Sequence[str]) -> None:
    """Checks names of data that are drawn.

    Args:
        data: All names; those of data sets are passed over.

    Raises:
        HfZipError: A generator is unknown or named twice, or what inputs are to be drawn from is
            not named.
    """
    images = [name for name in data if name.startswith(PREFIX)]
    for name in images:
        if name not in GENERATORS:
            raise unknown("generator", name, GENERATORS)
    check_once(images)
    for name in data:
        if name in FROM:
            what = "a data set or a file of texts" if name == RECOMBINED else "a model"
            drawn = "texts" if name in TEXTS else "images"
            raise HfZipError(f"{name!r} names nothing to draw {drawn} from; name {what} after it")


def check_once(data: Sequence[str]) -> None:
    """Checks that nothing is drawn twice.

    Args:
        data: See `check_generators`.

    Raises:
        HfZipError: A name is there twice, which would give the same inputs twice.
    """
    named = [name for name in data if is_generated(name)]
    for position, name in enumerate(named):
        if name in named[:position]:
            raise HfZipError(
                f"{name!r} is named twice, which gives the same inputs twice; name it once and ask "
                "for more samples"
            )


def generated_image(
    name: str, seed: int, number: int, height: int, width: int, channels: int = 3
) -> UInt8[ndarray, "height width channels"]:
    """Returns one image of a generator, which nothing but the arguments decides.

    Args:
        name: One of `GENERATORS`.
        seed: Decides all images.
        number: Which of them, from 0.
        height: Height in pixels.
        width: Width in pixels.
        channels: Number of channels.

    Example:
        >>> generated_image("generated:noise", seed=0, number=3, height=32, width=48).shape
        (32, 48, 3)
    """
    return GENERATORS[name](np.random.default_rng([seed, number]), height, width, channels)
