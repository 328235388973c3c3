"""Times zipfit on models shaped like ViT-B/16, beside the forwards that it cannot do without.

    python scripts/bench_zipfit.py                        # 12 layers of width 768: a quarter hour
    python scripts/bench_zipfit.py --layers 2             # minutes; time grows with the layers
    python scripts/bench_zipfit.py --layers 2 --width 192 --images 32
    python scripts/bench_zipfit.py --texts 512            # BERTs shaped like all-MiniLM-L6-v2

Weights and inputs are random: the time does not depend on them. Texts have 6 to 40 tokens. The peak
is that of the whole process, inputs and all models included.
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
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from hf_zip.adapters import adapter_of
from hf_zip.collect import make_accelerator, make_loader
from hf_zip.refit import zipfit
from hf_zip.refit.post_norm import fit as post_norm

BATCH_SIZE = 32
SHORTEST, LONGEST = 6, 40
WORDS = 30522


def main() -> None:
    """Prints seconds and the peak of resident memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, help="blocks of a model (default: 12; texts: 6)")
    parser.add_argument("--images", type=int, default=256, help="inputs (default: 256)")
    parser.add_argument("--texts", type=int, help="as many texts instead of images")
    parser.add_argument("--width", type=int, help="64, texts: 32 a head (default: 768; texts: 384)")
    parser.add_argument("--models", type=int, default=2, help="models (default: 2)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--memory", type=float, help="GiB of held streams (default: zipfit's)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    texts = args.texts is not None
    make, layers, width = (text_model, 6, 384) if texts else (image_model, 12, 768)
    layers, width = args.layers or layers, args.width or width
    models = [make(seed, width, layers) for seed in range(args.models)]
    inputs: Any = random_texts(args.texts) if texts else random_images(args.images)
    what = f"texts of {SHORTEST} to {LONGEST} tokens" if texts else "images of 224 x 224"
    print(
        f"torch {torch.__version__}, {args.threads} thread(s); {args.models} models of "
        f"{layers} layers, width {width}; {len(inputs)} {what}"
    )
    before = peak()
    forwards, _ = timed(partial(run_all, models, inputs))
    print(f"forwards of all models  {forwards:8.1f} s   peak {before:.2f} -> {peak():.2f} GiB")

    blocks: list[float] = []
    module, name = (post_norm, "_fit_block") if texts else (zipfit, "fit_block")
    fit_block = getattr(module, name)

    def timed_block(*block_args: Any, **kwargs: Any) -> Any:
        seconds, result = timed(partial(fit_block, *block_args, **kwargs))
        blocks.append(seconds)
        return result

    setattr(module, name, timed_block)
    fit = post_norm.zipfit_post_norm if texts else zipfit.zipfit
    given = {} if args.memory is None else {"memory": args.memory}
    options = zipfit.FitOptions(**given)
    total, _ = timed(
        partial(fit, models, adapter_of(models[0]), inputs, options, BATCH_SIZE, progress=False)
    )
    mean = sum(blocks) / len(blocks)
    print(f"zipfit                  {total:8.1f} s   peak {peak():.2f} GiB")
    print(f"  one block             {mean:8.1f} s   of {len(blocks)}, mean")
    print(f"  outside the blocks    {total - sum(blocks):8.1f} s   survey, embeddings, task head")
    print(f"zipfit / forwards       {total / forwards:8.1f}")


def image_model(seed: int, width: int, layers: int) -> PreTrainedModel:
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


def text_model(seed: int, width: int, layers: int) -> PreTrainedModel:
    """A classifier of 10 labels shaped like all-MiniLM-L6-v2, at random weights."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        intermediate_size=4 * width,
        num_labels=10,
    )
    return BertForSequenceClassification(config).eval()


def random_images(count: int) -> list[dict[str, torch.Tensor]]:
    """Standard normal images, as a map-style data set."""
    generator = torch.Generator().manual_seed(0)
    return [{"pixel_values": torch.randn(3, 224, 224, generator=generator)} for _ in range(count)]


class RandomTexts(list[torch.Tensor]):
    """Token ids as a map-style data set that pads its batches."""

    @staticmethod
    def collate(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns a batch of texts."""
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        return {"input_ids": pad_sequence(rows, batch_first=True), "attention_mask": mask}


def random_texts(count: int) -> RandomTexts:
    """Texts of random words, the longest first; a word is as frequent as its rank is low."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(SHORTEST, LONGEST + 1, (count,), generator=draw)
    frequencies = 1 / torch.arange(1, WORDS + 1)
    return RandomTexts(
        torch.multinomial(frequencies, length, replacement=True, generator=draw)
        for length in lengths.sort(descending=True).values.tolist()
    )


@torch.inference_mode()
def run_all(models: list[PreTrainedModel], inputs: Any) -> None:
    """Runs every model on every input."""
    for batch in make_loader(inputs, BATCH_SIZE, make_accelerator()):
        for model in models:
            model(**batch)


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
