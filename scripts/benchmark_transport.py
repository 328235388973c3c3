"""Measure what a fine-tune keeps of its accuracy when it is brought to another pretrained model.

    python scripts/benchmark_transport.py --out benchmarks

The images are scikit-learn's handwritten digits, so nothing is downloaded. Pretrained models are
ViTs that learnt all ten digits, each from a seed of its own. Every second one is fine-tuned on the
same digits with inverted greys, and on digits turned by 90 degrees, and what it learnt is brought
to the one before it. The factor of the task vector is chosen on validation images, one for each row
of the table, by the mean over pairs and tasks; the table has test images. Rootings in the other
base follow, for few steps, that begin as it is or with the task vector brought there. Results are
kept in `transport.json`, and `transport.md` is made from it.
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import torch
from benchmarking import write_results
from demo import shifted
from merging import shown_command
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional
from training import add_setting, fit, read_setting
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification

from hf_zip.adapters import adapter_for
from hf_zip.collect import make_accelerator
from hf_zip.match import Matching
from hf_zip.refit.head import refit_heads, trunk_of, with_trunk
from hf_zip.report import versions
from hf_zip.rooting.options import RootingOptions, RootTraining
from hf_zip.rooting.root import root_model
from hf_zip.tables import percent
from hf_zip.transport import Alignment, bring, in_form, pretrained

RESULTS = "transport"
FACTORS = (0.25, 0.5, 1.0, 1.5)
STEPS = (0, 25, 100)  # of rootings
SAMPLES = 512  # of a task's training images, without labels
SHARES = {"train": 0.6, "validation": 0.15, "test": 0.25}
HEADS = {
    "brought": "the fine-tune's, brought along",
    "own": "the pretrained model's",
    "fitted": "fitted to the fine-tune's answers",
}
TASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "inverted": lambda pixels: -pixels,
    "turned": lambda pixels: pixels.rot90(1, (2, 3)),
}
PARENTS = (
    "the fine-tune, on its own base",
    "the base that it is brought to",
    "that base, fine-tuned itself",
)
# By what maps, whether rescaled, and the maps where they are known.
WAYS: dict[str, tuple[Alignment, bool, Matching | None]] = {
    "as it is": ("permute", False, Matching({}, {})),
    "permute": ("permute", False, None),
    "rotate": ("rotate", False, None),
    "rotate, rescaled": ("rotate", True, None),
}
STARTS: dict[Literal["root", "transport"], str] = {
    "root": "rooted from the base",
    "transport": "rooted from the task vector brought there",
}
Part = tuple[Tensor, Tensor]
Cell = Mapping[str, Any]


@dataclass(frozen=True)
class Setting:
    """How models are made and trained.

    Args:
        width: Features of the stream.
        layers: Blocks.
        heads: Attention heads.
        batch: Images per step.
        epochs: Passes over the training images.
        learning_rate: Peak of the warmup and cosine schedule.
        weight_decay: Decay of AdamW.
        tuning_epochs: Passes of a fine-tuning.
        tuning_rate: Its learning rate.
    """

    width: int = 64
    layers: int = 4
    heads: int = 4
    batch: int = 64
    epochs: int = 40
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    tuning_epochs: int = 15
    tuning_rate: float = 3e-4


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=2, help="pairs of pretrained models")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    add_setting(parser, Setting())
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the models are too small for more to help
    started = time.process_time()
    setting = read_setting(arguments, Setting())
    record: dict[str, Any] = {
        "command": shown_command("benchmark_transport.py", sys.argv[1:]),
        "setting": asdict(setting),
        "pairs": arguments.pairs,
        "versions": dict(versions()),
        "cells": [],
    }
    for pair in range(arguments.pairs):
        record["cells"] += measure_pair(pair, setting)
    record["seconds"] = time.process_time() - started
    write_results(arguments.out, RESULTS, record, report(record))
    print("\n".join(report(record)))


def measure_pair(pair: int, setting: Setting) -> Iterator[dict[str, Any]]:
    """Yields the accuracies of every way to use a fine-tune of one base on another."""
    plain = digits()
    target, own = (pretrain(plain["train"], 2 * pair + k, setting) for k in range(2))
    for task, change in TASKS.items():
        parts = {name: (change(pixels), labels) for name, (pixels, labels) in plain.items()}
        tuned, there = (fine_tune(model, parts["train"], pair, setting) for model in (own, target))
        for name, model in zip(PARENTS, (tuned, target, there), strict=True):
            yield {"pair": pair, "task": task, "way": name, **scores(model, parts)}
        for found in brought(target, own, tuned, parts["train"][0][:SAMPLES]):
            named = {"way": found.way, "head": found.head, "factor": found.factor}
            yield {"pair": pair, "task": task, **named, **scores(found.model, parts)}
        for (way, steps), model in rooted(target, own, tuned, parts["train"][0][:SAMPLES]):
            named = {"way": way, "steps": steps}
            yield {"pair": pair, "task": task, **named, **scores(model, parts)}
        print(f"pair {pair}, {task}: done", flush=True)


@dataclass(frozen=True)
class Found:
    """A fine-tune as it becomes on another base.

    Args:
        model: It.
        way: How its task vector was brought there.
        head: Which head it has.
        factor: Factor of the task vector.
    """

    model: ViTForImageClassification
    way: str
    head: str
    factor: float


def brought(
    target: ViTForImageClassification,
    own: ViTForImageClassification,
    tuned: ViTForImageClassification,
    pixels: Tensor,
) -> Iterator[Found]:
    """Yields what a fine-tune becomes on another base, in every way, with every head.

    Args:
        target: The other base.
        own: The base that it was fine-tuned from.
        tuned: The fine-tune.
        pixels: Images of its task, without labels.
    """
    table, inputs = adapter_for("vit"), [{"pixel_values": image} for image in pixels]
    running = {"batch_size": 256, "accelerator": make_accelerator(), "progress": False}
    for name, (alignment, rescale, matching) in WAYS.items():
        place = pretrained(target, trunk_of(target, table), table, alignment)
        teacher, known = in_form(tuned, table, alignment), matching
        for factor in (0.0, *FACTORS):
            found = bring(
                tuned,
                trunk_of(own, table),
                place,
                table,
                inputs,
                alignment=alignment,
                scaling=factor,
                rescale=rescale,
                matching=known,
                **running,
            )
            known = found.matching
            trunk = trunk_of(found.model, table)
            fitted = refit_heads(trunk, [teacher], table, inputs, **running)[0]
            heads = {
                "brought": found.model,
                "own": with_trunk(place.model, trunk),
                "fitted": with_trunk(found.model, fitted),
            }
            for head, model in heads.items():
                yield Found(model, name, head, factor)


def rooted(
    target: ViTForImageClassification,
    own: ViTForImageClassification,
    tuned: ViTForImageClassification,
    pixels: Tensor,
) -> Iterator[tuple[tuple[str, int], PreTrainedModel]]:
    """Yields a fine-tune rooted in another base, from both starts, with every number of steps.

    Args:
        target: The other base.
        own: The base that it was fine-tuned from.
        tuned: The fine-tune.
        pixels: Images of its task, without labels.
    """
    table, inputs = adapter_for("vit"), [{"pixel_values": image} for image in pixels]
    for start, name in STARTS.items():
        for steps in STEPS:
            training = RootTraining(steps=steps, learning_rate=1e-3)
            found = root_model(
                tuned,
                trunk_of(target, table),
                inputs,
                RootingOptions(start=start, training=training),
                256,
                make_accelerator(),
                table,
                progress=False,
                own_base=trunk_of(own, table),
            )
            yield (name, steps), found.model


def digits() -> dict[str, Part]:
    """Returns pixel values and labels of all digits by split, the same for all models."""
    data = load_digits()
    pixels = torch.tensor(data.images, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1) / 8 - 1
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    sizes = [round(share * len(order)) for share in SHARES.values()]
    chosen = order.split([*sizes[:-1], len(order) - sum(sizes[:-1])])
    labels = torch.tensor(data.target)
    return {name: (pixels[own], labels[own]) for name, own in zip(SHARES, chosen, strict=True)}


def pretrain(part: Part, seed: int, setting: Setting) -> ViTForImageClassification:
    """Returns a model that learnt all ten digits from a seed."""
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=setting.width,
        num_hidden_layers=setting.layers,
        num_attention_heads=setting.heads,
        intermediate_size=2 * setting.width,
        image_size=8,
        patch_size=2,
        num_labels=10,
    )
    return _trained(ViTForImageClassification(config), part, setting)


def fine_tune(
    model: ViTForImageClassification, part: Part, seed: int, setting: Setting
) -> ViTForImageClassification:
    """Returns a copy of a model that was trained on."""
    torch.manual_seed(seed)
    shorter = replace(setting, epochs=setting.tuning_epochs, learning_rate=setting.tuning_rate)
    return _trained(copy.deepcopy(model), part, shorter)


def _trained(
    model: ViTForImageClassification, part: Part, setting: Setting
) -> ViTForImageClassification:
    pixels, labels = part

    def loss(chosen: Tensor) -> Tensor:
        return functional.cross_entropy(model(shifted(pixels[chosen])).logits, labels[chosen])

    fit(model, len(pixels), setting, loss)
    return model


@torch.inference_mode()
def scores(model: ViTForImageClassification, parts: Mapping[str, Part]) -> dict[str, float]:
    """Returns the accuracies on validation and test images."""
    return {
        name: (model(parts[name][0]).logits.argmax(-1) == parts[name][1]).float().mean().item()
        for name in ("validation", "test")
    }


def report(record: Mapping[str, Any]) -> list[str]:
    """Returns the results as Markdown."""
    cells, names = record["cells"], ["task vector", "head", "factor", *TASKS, "mean"]
    rows = [_row(cells, {"way": name}, [name, "its own", ""]) for name in PARENTS]
    for head, meaning in HEADS.items():
        # Only how a head was brought depends on the way, without a task vector.
        for way in ("as it is", "permute", "rotate") if head == "brought" else ("as it is",):
            how = f"{meaning} ({way})" if head == "brought" else meaning
            rows.append(_row(cells, {"way": way, "head": head, "factor": 0.0}, ["none", how, ""]))
        for way in WAYS:
            own = [{"way": way, "head": head, "factor": factor} for factor in FACTORS]
            best = max(own, key=lambda chosen: _mean(cells, chosen, "validation"))
            rows.append(_row(cells, best, [way, meaning, f"{best['factor']:g}"]))
    for name in STARTS.values():
        for steps in STEPS:
            cell = {"way": name, "steps": steps}
            rows.append(_row(cells, cell, [f"{name}, {steps} steps", "fitted, then trained", ""]))
    return [
        "# What is kept of a fine-tune on another base?",
        "",
        f"`{record['command']}`: {record['pairs']} pairs of ViTs that learnt the digits from "
        f"different seeds, {record['seconds']:.0f} CPU seconds. Accuracy on test images in "
        "percent, mean over the pairs; the factor of each row was chosen on validation images.",
        "",
        f"| {' | '.join(names)} |",
        f"|{'---|' * len(names)}",
        *rows,
    ]


def _row(cells: Sequence[Cell], chosen: Cell, names: Sequence[str]) -> str:
    means = [_mean(cells, {**chosen, "task": task}, "test") for task in TASKS]
    return f"| {' | '.join([*names, *map(percent, [*means, mean(means)])])} |"


def _mean(cells: Sequence[Cell], chosen: Cell, part: str) -> float:
    return mean(cell[part] for cell in cells if chosen.items() <= cell.items())


if __name__ == "__main__":
    main()
