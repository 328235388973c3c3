"""Train two small ViTs on disjoint halves of the digits, merge them, and show what came out.

The images are scikit-learn's handwritten digits (1,797 images of 8 x 8), so nothing is downloaded.
One model learns zero to four, the other five to nine, each from its own initialisation. Every
method merges the same two models; the table has all of them beside parents, ensemble and controls.

Nothing is chosen on the test split: every method runs with its defaults.
"""

import argparse
import logging
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import yaml
from datasets import ClassLabel, Dataset, Features, Image, disable_progress_bars
from PIL import Image as PILImage
from sklearn.datasets import load_digits
from torch.nn.functional import affine_grid, cross_entropy, grid_sample
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

import hf_zip
from hf_zip.evaluate import Evaluation
from hf_zip.methods import methods
from hf_zip.tables import table

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TASKS = {"low": range(5), "high": range(5, 10)}
SPLITS = {"train": 0.6, "validation": 0.15, "test": 0.25}


def main() -> None:
    """Runs the demo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo_output"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=300)
    arguments = parser.parse_args()
    # These models are too small for threads to help, and threads stall where a core is busy.
    torch.set_num_threads(1)
    disable_progress_bars()
    logging.basicConfig(format="%(message)s")

    write_data(arguments.out / "data", arguments.seed)
    for position, task in enumerate(TASKS):
        train(arguments.out, task, arguments.seed * 2 + position, arguments.epochs)
    recipe = write_recipe(arguments.out, arguments.seed)
    merge_and_compare(recipe, arguments.out)


def write_data(folder: Path, seed: int) -> None:
    """Writes `TASK/SPLIT.parquet` with the columns `image` and `label`."""
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(seed).permutation(len(images))
    bounds = np.round(np.cumsum([0, *SPLITS.values()]) * len(images)).astype(int)
    for task, classes in TASKS.items():
        features = Features(
            {"image": Image(), "label": ClassLabel(names=[NAMES[c] for c in classes])}
        )
        (folder / task).mkdir(parents=True, exist_ok=True)
        for split, start, stop in zip(SPLITS, bounds, bounds[1:], strict=False):
            chosen = [i for i in order[start:stop] if digits.target[i] in classes]
            rows = {
                "image": [PILImage.fromarray(images[i]).convert("RGB") for i in chosen],
                "label": [int(digits.target[i]) - classes[0] for i in chosen],
            }
            Dataset.from_dict(rows, features=features).to_parquet(
                folder / task / f"{split}.parquet"
            )


def train(out: Path, task: str, seed: int, epochs: int) -> None:
    """Trains one ViT on one task and saves it with its image processor."""
    names = [NAMES[c] for c in TASKS[task]]
    config = ViTConfig(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=8,
        patch_size=2,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8})
    torch.manual_seed(seed)
    model = ViTForImageClassification(config)
    pixels, labels = load_split(out / "data" / task / "train.parquet", processor)
    batch = 64
    steps = epochs * (len(pixels) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1e-3, total_steps=steps, pct_start=0.1
    )
    started = time.perf_counter()
    for _ in range(epochs):
        shuffled = torch.randperm(len(pixels))[: len(pixels) // batch * batch]
        for chosen in shuffled.split(batch):
            loss = cross_entropy(model(shifted(pixels[chosen])).logits, labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    pixels, labels = load_split(out / "data" / task / "validation.parquet", processor)
    with torch.inference_mode():
        accuracy = (model(pixels).logits.argmax(-1) == labels).float().mean().item()
    seconds = time.perf_counter() - started
    print(f"trained {task!r} in {seconds:.0f} s: {accuracy:.1%} on its validation split")
    model.save_pretrained(out / "models" / task)
    processor.save_pretrained(out / "models" / task)


def load_split(path: Path, processor: ViTImageProcessorPil) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns all pixel values and labels of a file."""
    rows = Dataset.from_parquet(str(path))
    pixels = processor(list(rows["image"]), return_tensors="pt")["pixel_values"]
    return pixels, torch.tensor(list(rows["label"]))


def shifted(pixels: torch.Tensor) -> torch.Tensor:
    """Returns the images, each turned, scaled and moved a little."""
    count = len(pixels)
    angle = (torch.rand(count) - 0.5) * 0.5
    scale = 1 + (torch.rand(count) - 0.5) * 0.2
    move = (torch.rand(count, 2) - 0.5) * 0.4
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    rows = [torch.stack([cos, -sin, move[:, 0]], 1), torch.stack([sin, cos, move[:, 1]], 1)]
    grid = affine_grid(torch.stack(rows, 1), list(pixels.shape), align_corners=False)
    return grid_sample(pixels, grid, padding_mode="border", align_corners=False)


def write_recipe(out: Path, seed: int) -> Path:
    """Writes the recipe of the merge."""
    recipe = {
        "merge_method": "zipfit",
        "models": [{"model": str(out / "models" / task), "task": task} for task in TASKS],
        "calibration": {
            "data": [str(out / "data" / task / "train.parquet") for task in TASKS],
            "samples": 1024,
        },
        "evaluation": [
            {"task": task, "data": str(out / "data" / task / "test.parquet")} for task in TASKS
        ],
        "seed": seed,
    }
    path = out / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def merge_and_compare(recipe: Path, out: Path) -> None:
    """Merges by every method and prints one table; the recipe's own merge ends in `merged`."""
    chosen = hf_zip.Recipe.from_yaml(recipe)
    measured: list[Evaluation] = []
    for name, method in methods().items():
        needs = method.requires
        if needs.base or needs.shared_init:  # the average is a row of every merge's own table
            continue
        folder = out / ("merged" if name == chosen.merge_method else f"merged_by_{name}")
        started = time.perf_counter()
        evaluation = hf_zip.merge(replace(chosen, merge_method=name), out=folder).report.evaluation
        if evaluation is None:
            raise SystemExit("the recipe names no evaluation data")
        measured.append(evaluation)
        print(f"{name}: {time.perf_counter() - started:.0f} s, written to {folder}")
    others = [row for row in measured[0].rows if row.kind != "merge"]
    merges = [row for evaluation in measured for row in evaluation.of_kind("merge")]
    print(table(replace(measured[0], rows=(*others, *merges))))


if __name__ == "__main__":
    main()
