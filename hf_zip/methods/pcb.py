"""PCB: numbers of task vectors weighted by their size and by how they go with the others."""

from dataclasses import dataclass

from torch import Tensor

from hf_zip.combining.combination import Combination, Parameter, Parameters, Setting, added
from hf_zip.combining.competition import Bounds, compete, competition_bounds
from hf_zip.combining.merging import votes_of
from hf_zip.method import MergeInputs, MergeMethod, Requires, WeightOptions
from hf_zip.outcome import Merged
from hf_zip.ranges import check_between
from hf_zip.siblings import SiblingRefit, merge_siblings


@dataclass(frozen=True)
class PcbOptions:
    """What is kept of task vectors, and how much of their merge is added.

    Args:
        ratio: Share of each task vector's numbers to keep, those of the best scores, in [0, 1]; the
            paper's r.
        scaling: Factor of the merged task vector, the paper's λ.
        layer_scale: Share of this factor for the first block; the last has all of it (LiNeS).
        refit: "head" fits the task heads anew, by least squares on the calibration inputs; "repair"
            restores mean and deviation of what every layer gives.
    """

    ratio: float = 0.1
    scaling: float = 1.0
    layer_scale: float = 1.0
    refit: SiblingRefit = "none"

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_between("ratio", self.ratio)


def _survey(parameters: Parameters, setting: Setting) -> Bounds:
    return competition_bounds(
        lambda: (parameter.task_vectors for parameter in parameters()), setting.options.ratio
    )


def _merge(parameter: Parameter, setting: Setting) -> Tensor:
    vectors = parameter.task_vectors
    return compete(vectors, setting.found, votes_of(setting, vectors))


COMBINATION = Combination(added(_merge), _survey, surveyed=("ratio",))


def run(inputs: MergeInputs, options: PcbOptions) -> Merged:
    """Returns the base plus the mean of task vectors, every number weighted by its score.

    Source: PCB-Merging (https://arxiv.org/abs/2410.02396), without its search for a λ of each
    model; see `compete`. With ratios that vary, parameters of the same ratio compete together.
    """
    return merge_siblings(inputs, COMBINATION, options)


ENTRY = MergeMethod(
    name="pcb",
    title="PCB: numbers of task vectors weighted by their size and by how they agree",
    reference="https://arxiv.org/abs/2410.02396",
    requires=Requires(base=True, shared_init=True, elementwise=True),
    run=run,
    options=PcbOptions,
    model_options=WeightOptions,
    exact=True,
    combination=COMBINATION,
)
