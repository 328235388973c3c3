"""Twin-Merging: what models share, and what else each knows, added for the inputs it suits."""

from dataclasses import dataclass
from typing import Literal

from hf_zip.experts import merge_experts
from hf_zip.method import MergeInputs, MergeMethod, Requires
from hf_zip.outcome import Merged
from hf_zip.ranges import check_between


@dataclass(frozen=True)
class TwinOptions:
    """What is shared, how much else is kept of each model, and how it is chosen for an input.

    Args:
        scaling: Factor of the sum of task vectors in what is shared.
        rank: Share of the directions of a matrix that are kept of what a model is beside that, in
            (0, 1].
        routing: "soft" adds what all models know, by how likely an input is of their tasks; "top"
            that of the likeliest alone.
        penalty: Ridge of the router, as a share of the mean variance of its features, from 1e-9 on.
    """

    scaling: float = 0.4
    rank: float = 0.1
    routing: Literal["soft", "top"] = "soft"
    penalty: float = 1e-2

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_between("rank", self.rank, 1e-6)
        check_between("penalty", self.penalty, 1e-9, float("inf"))


def run(inputs: MergeInputs, options: TwinOptions) -> Merged:
    """Returns task arithmetic, what each model is beside it cut to a rank, and a router.

    Source: Twin-Merging (https://arxiv.org/abs/2406.15479), section 3.3. The router is trained on
    labelled inputs there; here it is a linear discriminant, solved for, that knows of each input
    whose model's it is and nothing else. What is no matrix is kept whole.
    """
    return merge_experts(inputs, options.scaling, options.rank, options.routing, options.penalty)


ENTRY = MergeMethod(
    name="twin",
    title="Twin-Merging: what models share, and what else each knows for the inputs it suits",
    reference="https://arxiv.org/abs/2406.15479",
    requires=Requires(
        base=True, calibration=True, own_inputs=True, shared_init=True, elementwise=True
    ),
    run=run,
    options=TwinOptions,
    per_task=True,
)
