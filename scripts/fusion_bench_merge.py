"""Merges folders by FusionBench 0.2.33, called by `bench_merge.py` in FusionBench's environment."""

import json
import sys

import torch
from fusion_bench import method  # type: ignore[import-not-found]  # in its environment only
from fusion_bench.modelpool import BaseModelPool  # type: ignore[import-not-found]


def main(text: str) -> None:
    """Loads the models as its pool does, merges and saves them."""
    order = json.loads(text)
    target = f"transformers.{order['class']}.from_pretrained"
    named = {f"model_{i}": place for i, place in enumerate(order["models"])}
    if order["base"] is not None:
        named = {"_pretrained_": order["base"], **named}
    pool = BaseModelPool(
        {
            name: {
                "_target_": target,
                "pretrained_model_name_or_path": place,
                "dtype": order["dtype"],
            }
            for name, place in named.items()
        }
    )
    algorithm = getattr(method, order["algorithm"])(**order["options"])
    with torch.no_grad():
        merged = algorithm.run(pool)
    merged.save_pretrained(order["out"])


if __name__ == "__main__":
    main(sys.argv[1])
