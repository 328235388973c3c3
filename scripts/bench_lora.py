"""Times the merge of LoRAs to one of a rank, beside peft's by the SVD of the dense update.

    python scripts/bench_lora.py [--layers 1] [--repeats 3]

Eight random adapters of rank 16 on linear layers with BERT-base's shapes (query, key, value and
output of 768 to 768, and both layers of the MLP), merged with random weights to rank 16. Pairs of
runs alternate, and medians are reported. Errors are relative to the truncated SVD of the dense
update in float64, in norm.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Mapping

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from hf_zip.combining.low_rank import LowRank, compressed, stacked

ADAPTERS, RANK, WIDTH, HIDDEN = 8, 16, 768, 3072


class Layer(nn.Module):
    """The linear layers of one block of BERT-base."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH)
        self.up = nn.Linear(WIDTH, HIDDEN)
        self.down = nn.Linear(HIDDEN, WIDTH)


def adapted(layers: int) -> PeftModel:
    """Returns layers with random adapters."""
    names = ["query", "key", "value", "output", "up", "down"]
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names, init_lora_weights=False)
    model = get_peft_model(nn.Sequential(*(Layer() for _ in range(layers))), config, "a0")
    for i in range(1, ADAPTERS):
        model.add_adapter(f"a{i}", config)
    return model


def parts_of(model: PeftModel) -> dict[str, list[LowRank]]:
    """Returns the updates of all adapters by layer; the scaling of all is 1."""
    return {
        name: [
            LowRank(module.lora_B[f"a{i}"].weight.data, module.lora_A[f"a{i}"].weight.data)
            for i in range(ADAPTERS)
        ]
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }


@torch.no_grad()
def by_peft(model: PeftModel, weights: list[float]) -> dict[str, Tensor]:
    """Returns what peft makes of the updates."""
    names = [f"a{i}" for i in range(ADAPTERS)]
    model.add_weighted_adapter(names, weights, "merged", combination_type="svd", svd_rank=RANK)
    found = {
        name: module.lora_B["merged"].weight @ module.lora_A["merged"].weight
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }
    model.delete_adapter("merged")
    return found


def error(found: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> float:
    """Returns the largest relative difference in norm."""
    return max(
        float((found[n].double() - tensor).norm() / tensor.norm()) for n, tensor in exact.items()
    )


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = adapted(arguments.layers)
    parts = parts_of(model)
    weights = torch.rand(ADAPTERS).tolist()
    exact = {}
    for name, own in parts.items():
        dense = sum(
            w * p.left.double() @ p.right.double() for w, p in zip(weights, own, strict=True)
        )
        u, s, v = torch.linalg.svd(dense, full_matrices=False)
        exact[name] = (u[:, :RANK] * s[:RANK]) @ v[:RANK]
    seconds: dict[str, list[float]] = {"hf_zip": [], "peft": []}
    for _ in range(arguments.repeats):
        started = time.perf_counter()
        merged = {n: compressed(stacked(own, weights), RANK)[0] for n, own in parts.items()}
        seconds["hf_zip"].append(time.perf_counter() - started)
        started = time.perf_counter()
        theirs = by_peft(model, weights)
        seconds["peft"].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = [p / o for p, o in zip(seconds["peft"], seconds["hf_zip"], strict=True)]
    ours = {n: p.left.double() @ p.right.double() for n, p in merged.items()}
    print(f"{len(parts)} matrices, {ADAPTERS} adapters of rank {RANK} to rank {RANK}")
    print(f"hf_zip {medians['hf_zip']:.3f} s, error {error(ours, exact):.1e}")
    print(f"peft   {medians['peft']:.3f} s, error {error(theirs, exact):.1e}")
    print(
        f"ratio  {statistics.median(ratios):.1f} (paired: {', '.join(f'{r:.1f}' for r in ratios)})"
    )


if __name__ == "__main__":
    main()
