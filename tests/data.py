"""Small image data sets for tests."""

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage

CAPTIONS = ["a photo of a cat", "dog", "a dog of a cat of a dog", "photo of dog", "a", "cat"]


def random_images(count, seed=0, size=8):
    noise = np.random.default_rng(seed)
    return [
        PILImage.fromarray(noise.integers(0, 256, (size, size, 3), dtype=np.uint8))
        for _ in range(count)
    ]


def write_images(folder, count, seed=0):
    """An image folder without labels."""
    folder.mkdir()
    for i, image in enumerate(random_images(count, seed)):
        image.save(folder / f"{i}.png")


def write_captioned(path, count=6):
    """A parquet file with the columns `image` and `caption`."""
    columns = {"image": random_images(count), "caption": (CAPTIONS * count)[:count]}
    features = Features({"image": Image(), "caption": Value("string")})
    Dataset.from_dict(columns, features=features).to_parquet(path)
    return str(path)


def write_labelled(path, names, count, seed=0):
    """A parquet file with the columns `image` and `label`."""
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    labels = [i % len(names) for i in range(count)]
    rows = {"image": random_images(count, seed), "label": labels}
    Dataset.from_dict(rows, features=features).to_parquet(path)
