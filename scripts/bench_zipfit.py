"""Times zipfit on models shaped like ViT-B/16, beside the forwards that it cannot do without.

    python scripts/bench_zipfit.py                        # 12 layers of width 768: a quarter hour
    python scripts/bench_zipfit.py --layers 2             # minutes; time grows with the layers
    python scripts/bench_zipfit.py --layers 2 --width 192 --images 32

Weights and images are random: the time does not depend on them. The peak is that of the whole
process, images and both models included.
"""

import argparse
import os
import platform
import resource
import time
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from transformers import ViTConfig, ViTForImageClassification

from hf_zip.adapters import adapter_for
from hf_zip.refit import zipfit

BATCH_SIZE = 32


def main() -> None:
    """Prints seconds and the peak of resident memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=12, help="blocks of a model (default: 12)")
    parser.add_argument("--images", type=int, default=256, help="inputs (default: 256)")
    parser.add_argument("--width", type=int, default=768, help="width, 64 a head (default: 768)")
    parser.add_argument("--models", type=int, default=2, help="models (default: 2)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--memory", type=float, help="GiB of held streams (default: zipfit's)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    models = [example(seed, args.width, args.layers) for seed in range(args.models)]
    inputs = random_images(args.images)
    print(
        f"torch {torch.__version__}, {args.threads} thread(s); {args.models} models of "
        f"{args.layers} layers, width {args.width}; {args.images} images of 224 x 224"
    )
    before = peak()
    forwards, _ = timed(partial(run_all, models, inputs))
    print(f"forwards of all models  {forwards:8.1f} s   peak {before:.2f} -> {peak():.2f} GiB")

    blocks: list[float] = []
    fit_block = zipfit.fit_block

    def timed_block(*block_args: Any, **kwargs: Any) -> Any:
        seconds, result = timed(partial(fit_block, *block_args, **kwargs))
        blocks.append(seconds)
        return result

    zipfit.fit_block = timed_block
    options = {} if args.memory is None else {"memory": args.memory}
    total, _ = timed(
        partial(
            zipfit.zipfit,
            models,
            adapter_for("vit"),
            inputs,
            zipfit.FitOptions(**options),
            BATCH_SIZE,
            progress=False,
        )
    )
    mean = sum(blocks) / len(blocks)
    print(f"zipfit                  {total:8.1f} s   peak {peak():.2f} GiB")
    print(f"  one block             {mean:8.1f} s   of {len(blocks)}, mean")
    print(f"  outside the blocks    {total - sum(blocks):8.1f} s   survey, embeddings, task head")
    print(f"zipfit / forwards       {total / forwards:8.1f}")


def example(seed: int, width: int, layers: int) -> ViTForImageClassification:
    """A classifier of 10 labels shaped like ViT-B/16, at random weights."""
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        num_labels=10,
    )
    return ViTForImageClassification(config).eval()


def random_images(count: int) -> list[dict[str, torch.Tensor]]:
    """Standard normal images, as a map-style data set."""
    generator = torch.Generator().manual_seed(0)
    return [{"pixel_values": torch.randn(3, 224, 224, generator=generator)} for _ in range(count)]


@torch.inference_mode()
def run_all(models: list[ViTForImageClassification], inputs: list[dict[str, torch.Tensor]]) -> None:
    """Runs every model on every input."""
    for start in range(0, len(inputs), BATCH_SIZE):
        rows = [row["pixel_values"] for row in inputs[start : start + BATCH_SIZE]]
        for model in models:
            model(torch.stack(rows))


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """The seconds that a call takes, and what it returns."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def peak() -> float:
    """The largest resident memory of this process so far, in GiB."""
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found / (1024**3 if platform.system() == "Darwin" else 1024**2)


if __name__ == "__main__":
    main()
