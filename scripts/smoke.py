"""Use an installed hf-zip as a user would: list, merge two tiny random ViTs, load the result.

python scripts/smoke.py path/of/hf-zip
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil, pipeline


def main() -> None:
    """Runs the installed command from the current folder."""
    command = sys.argv[1]
    for position, names in enumerate([["cat", "dog"], ["oak", "elm", "ash"]]):
        torch.manual_seed(position)
        config = ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            image_size=8,
            patch_size=4,
            id2label=dict(enumerate(names)),
            label2id={name: i for i, name in enumerate(names)},
        )
        ViTForImageClassification(config).save_pretrained(f"model_{position}")
        ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(f"model_{position}")
    write_images("images")
    subprocess.run([command, "methods"], check=True)
    options = ["--method", "zipit", "--calibration", "images", "--samples", "24", "--out", "merged"]
    subprocess.run([command, "merge", "model_0", "model_1", *options], check=True)
    labels = {
        row["label"] for row in pipeline("image-classification", "merged")("images/0.png", top_k=9)
    }
    if labels != {"cat", "dog", "oak", "elm", "ash"}:
        raise SystemExit(f"the merged model answers {labels}")


def write_images(folder: str) -> None:
    """Writes 24 random images."""
    Path(folder).mkdir(exist_ok=True)
    noise = np.random.default_rng(0)
    for i in range(24):
        pixels = noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"{folder}/{i}.png")


if __name__ == "__main__":
    main()
