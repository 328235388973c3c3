"""Tells how far cosines and opposite signs of large tensors are estimated off, on given models.

    python scripts/compare_sampled.py MODEL MODEL... --base BASE

Of tensors of more than 2^19 numbers an eighth is compared. Printed are, by role, the largest
differences over all pairs of the models from what all numbers give.
"""

import argparse
from collections.abc import Sequence

from hf_zip import products
from hf_zip.adapters import adapter_for
from hf_zip.base_model import base_state
from hf_zip.recipe import ModelSpec
from hf_zip.similarity import PairSimilarity, similarities, task_vector_similarities
from hf_zip.sources import load_sources
from hf_zip.task_head import task_heads


def main() -> None:
    """Prints the largest differences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="+", help="fine-tunes of one base: folders or Hub ids")
    parser.add_argument("--base", required=True, help="the base")
    args = parser.parse_args()
    *sources, base = load_sources([ModelSpec(reference) for reference in (*args.models, args.base)])
    first = sources[0].model
    adapter = adapter_for(str(first.config.model_type))
    before = base_state(first, base.model, task_heads(first))

    def compared() -> dict[str, Sequence[PairSimilarity]]:
        return {
            "weights": similarities(sources, adapter),
            "task vectors": task_vector_similarities(sources, before, adapter),
        }

    estimated = compared()
    products._WHOLE = 1 << 62
    exact = compared()
    for what, pairs in estimated.items():
        print(f"{what}: {100 * pairs[0].share:.1f} % of the numbers, {len(pairs)} pairs")
        for role in pairs[0].cosines:
            cosines = (
                abs(own.cosines[role] - known.cosines[role])
                for own, known in zip(pairs, exact[what], strict=True)
            )
            conflicts = (
                abs(own.sign_conflicts[role] - known.sign_conflicts[role])
                for own, known in zip(pairs, exact[what], strict=True)
            )
            print(f"  {role}: cosine {max(cosines):.5f}, opposite signs {max(conflicts):.5f}")


if __name__ == "__main__":
    main()
