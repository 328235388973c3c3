"""Merge a ViT with a reordered copy of itself: the smallest test of an alignment.

The copy computes exactly what the original computes; only the order of its features, heads and
hidden units differs. A merge that sees through the order gives the model back; a plain average
ruins it. Prints a table, and writes a bar chart with `--plot FILE`.
"""

import argparse

import torch
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification

import hf_zip
from hf_zip.adapters import adapter_of
from hf_zip.align import align
from hf_zip.groups import MergeGroup, merge_groups
from hf_zip.matching.merge_map import MergeMap

METHODS = ["average", "permute", "zipit", "zipfit"]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--plot", help="write a bar chart to this file")
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    names = [f"class {i}" for i in range(10)]
    config = ViTConfig(
        hidden_size=96,
        num_hidden_layers=6,
        num_attention_heads=6,
        intermediate_size=192,
        image_size=32,
        patch_size=8,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    model = ViTForImageClassification(config).eval()
    with torch.no_grad():  # the default initialisation is too small for its blocks to matter
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    copy = reordered(model, arguments.seed + 1)
    calibration = torch.randn(arguments.images, 3, 32, 32)
    test = torch.randn(arguments.images, 3, 32, 32)

    print("| merge of a ViT with its reordered copy | relative logit error | same answer |")
    print("|---|---|---|")
    print("| the copy itself | {:.1e} | {:.1%} |".format(*compare(model, copy, test)))
    figures = {}
    for method in METHODS:
        merged = hf_zip.merge(
            [model, copy],
            method=method,
            tasks=["same", "same"],
            calibration=None if method == "average" else calibration,
            force=True,
            progress=False,
        ).model
        figures[method] = compare(model, merged, test)
        print("| `{}` | {:.1e} | {:.1%} |".format(method, *figures[method]))
    if arguments.plot:
        plot({method: agreement for method, (_, agreement) in figures.items()}, arguments.plot)


def reordered(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Returns a model of the same function with stream, heads and hidden units reordered."""
    groups = merge_groups(model, adapter_of(model))
    state = align(dict(model.named_parameters()), groups, random_order(groups, seed), 0)
    copy = ViTForImageClassification(model.config).eval()
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            parameter.copy_(state[name])
    return copy


def random_order(groups: tuple[MergeGroup, ...], seed: int) -> dict[str, MergeMap]:
    """Returns a random permutation for every group; linked groups share the order of heads."""
    generator = torch.Generator().manual_seed(seed)
    heads: dict[str, torch.Tensor] = {}
    maps = {}
    for group in groups:
        order = heads.get(group.linked or "", torch.randperm(group.num_heads, generator=generator))
        heads[group.name] = order
        width = group.size // group.num_heads
        inner = [torch.randperm(width, generator=generator) + head * width for head in order]
        matrix = torch.eye(group.size)[torch.cat(inner)].unsqueeze(0)
        maps[group.name] = MergeMap(matrix, matrix.transpose(1, 2))
    return maps


@torch.inference_mode()
def compare(
    model: PreTrainedModel, other: PreTrainedModel, images: torch.Tensor
) -> tuple[float, float]:
    """Returns the relative logit error and the share of images with the same answer."""
    a, b = model(images).logits, other(images).logits
    error = (a - b).norm() / a.norm()
    return error.item(), (a.argmax(-1) == b.argmax(-1)).float().mean().item()


def plot(agreement: dict[str, float], path: str) -> None:
    """Writes a bar chart."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 2.2), layout="constrained")
    bars = axes.barh(
        list(agreement), [100 * share for share in agreement.values()], color="#4c72b0"
    )
    axes.bar_label(bars, fmt="%.0f %%", padding=3)
    axes.set(xlim=(0, 112), xlabel="same answer as the model, % of images")
    axes.set_title("A ViT merged with its reordered copy", fontsize=10)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
