"""PLeaS: the best matched features are merged, the others kept, and every layer is refitted."""

from dataclasses import dataclass

from hf_zip.aligned import refit_aligned
from hf_zip.errors import HfZipError
from hf_zip.match import Plan, match
from hf_zip.method import MergeInputs, MergeMethod, Requires
from hf_zip.outcome import Merged
from hf_zip.refit.walk import RidgeOptions

# Possible sizes are shown with four digits, so one that is typed from there may be a little off.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class PleasOptions(RidgeOptions):
    """How much is merged, and how every layer is fitted.

    Args:
        penalty: See `RidgeOptions`; so are the next two.
        head_penalty: See `penalty`.
        memory: See `penalty`.
        size: Width of the merged model relative to one source, from 1, where all features are
            merged, to the number of sources, where none are. Heads are merged or kept whole, so
            only some sizes are possible.
    """

    size: float = 1.0


def run(inputs: MergeInputs, options: PleasOptions) -> Merged:
    """Returns one model, each layer fitted to the merged and the kept features of all sources.

    Source: PLeaS (https://arxiv.org/abs/2407.02447), section 4. Deviations: one size for all
    layers, not a budget that is shared out between them; heads are merged or kept whole; the least
    squares are solved in closed form with a ridge, not by gradient descent, on what the merged
    model itself computes; and layers that write to the stream are fitted to what it lacks.
    """
    count = len(inputs.states)
    num_heads = next(group.num_heads for group in inputs.groups if group.role == "value")
    shared = merged_heads(options.size, count, num_heads) / num_heads
    matching = match(inputs.groups, inputs.covariances, count, Plan(shared=shared))
    return refit_aligned(inputs, matching, options=options)


def merged_heads(size: float, num_models: int, num_heads: int) -> int:
    """Returns how many heads are to be merged for a model of a given size.

    Args:
        size: See `PleasOptions`.
        num_models: Number of models.
        num_heads: Number of heads of each of them.

    Raises:
        HfZipError: No number of heads makes that size.

    Example:
        >>> merged_heads(1.5, num_models=2, num_heads=4)
        2
    """
    sizes = {
        merged: num_models - merged * (num_models - 1) / num_heads
        for merged in range(num_heads, -1, -1)
    }
    for merged, possible in sizes.items():
        if abs(size - possible) <= TOLERANCE:
            return merged
    shown = ", ".join(dict.fromkeys(f"{possible:.4g}" for possible in sizes.values()))
    raise HfZipError(
        f"pleas's size is {size}, but heads are merged or kept whole: {num_models} models of "
        f"{num_heads} heads make one of size {shown}; give one of these"
    )


ENTRY = MergeMethod(
    name="pleas",
    title="PLeaS: best matched features merged, others kept, every layer refitted",
    reference="https://arxiv.org/abs/2407.02447",
    requires=Requires(calibration=True, covariances=True, canonical=True, plain_scores=True),
    run=run,
    options=PleasOptions,
)
