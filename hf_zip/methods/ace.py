"""ACE: RegMean without data, the inputs' second moments told by the task vectors themselves."""

from dataclasses import dataclass

from hf_zip.combining.combination import of_matrices
from hf_zip.combining.estimated import by_estimated_inputs
from hf_zip.method import MergeInputs, MergeMethod, Requires, WeightOptions
from hf_zip.outcome import Merged
from hf_zip.ranges import check_between
from hf_zip.siblings import SiblingRefit, merge_siblings


@dataclass(frozen=True)
class AceOptions:
    """How far the estimates are trusted, and how much of the merge is added.

    Args:
        epsilon: What is added to the diagonal of every estimate, the paper's ε, above 0. The larger
            it is, the nearer the merge is to the mean of the task vectors.
        threshold: From which differences of size between task vectors on their estimates are
            divided by their traces, the paper's τ.
        rank: Share of singular directions that is then given back, in [0, 1].
        scaling: Factor of the merged task vector; there is none in the paper.
        layer_scale: Share of this factor for the first block; the last has all of it (LiNeS).
        refit: "head" fits the task heads anew, by least squares on the calibration inputs; "repair"
            restores mean and deviation of what every layer gives.
    """

    epsilon: float = 1e-5
    threshold: float = 0.3
    rank: float = 0.3
    scaling: float = 1.0
    layer_scale: float = 1.0
    refit: SiblingRefit = "none"

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_between("epsilon", self.epsilon, 1e-300, float("inf"))
        check_between("threshold", self.threshold, 0, float("inf"))
        check_between("rank", self.rank)


COMBINATION = of_matrices(
    lambda vectors, options: by_estimated_inputs(
        vectors, options.epsilon, options.threshold, options.rank
    )
)


def run(inputs: MergeInputs, options: AceOptions) -> Merged:
    """Returns the base plus the regression of task vectors on inputs that they tell themselves.

    Source: ACE-Merging (https://arxiv.org/abs/2603.02945), section 4; see `by_estimated_inputs`.
    Linear layers are merged so, everything else is averaged. The paper's ε depends on the models;
    the default here is one for all.
    """
    return merge_siblings(inputs, COMBINATION, options)


ENTRY = MergeMethod(
    name="ace",
    title="ACE: regression on inputs whose moments the task vectors themselves tell",
    reference="https://arxiv.org/abs/2603.02945",
    requires=Requires(base=True, shared_init=True, elementwise=True),
    run=run,
    options=AceOptions,
    model_options=WeightOptions,
    exact=True,
    combination=COMBINATION,
)
