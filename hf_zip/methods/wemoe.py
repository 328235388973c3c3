"""WEMoE: one model but for the MLPs, which a router of every block mixes for each input."""

from dataclasses import dataclass, field
from typing import Literal

from hf_zip.method import MergeInputs, MergeMethod, Requires
from hf_zip.mixture import merge_mixture
from hf_zip.outcome import Merged
from hf_zip.training.options import TrainingOptions
from hf_zip.undecided import check_recomputed


@dataclass(frozen=True)
class RouterTraining(TrainingOptions):
    """How routers are trained: as other training, with the published steps and learning rate."""

    steps: int = 1000
    learning_rate: float = 1e-4


@dataclass(frozen=True)
class WemoeOptions:
    """How much of the task vectors there is at the start, and what says how much is added.

    Args:
        scaling: Factor of the sum of task vectors in all but the MLPs, and what routers begin with.
        layers: How many linear layers a router has.
        training: How routers are trained, see `hf_zip.training.options`.
    """

    scaling: float = 0.3
    layers: Literal[1, 2] = 2
    training: RouterTraining = field(default=RouterTraining())

    def __post_init__(self) -> None:
        """Checks that it can be trained so."""
        check_recomputed("wemoe", self.training)


def run(inputs: MergeInputs, options: WemoeOptions) -> Merged:
    """Returns task arithmetic, and MLPs that are the base's plus task vectors times routers.

    The routers have the least entropy of each model's head over unlabelled inputs.

    Source: WEMoE (https://arxiv.org/abs/2402.00433), section 4. A router is as wide as its input,
    with a ReLU between its layers. There the inputs are those of each task's test set; here they
    are calibration inputs, of each model's own where it has some. A router's last weights begin at
    zero, there as small random numbers, and padding does not count in the mean over tokens.
    """
    return merge_mixture(inputs, "wemoe", options.scaling, options.layers, options.training)


ENTRY = MergeMethod(
    name="wemoe",
    title="WEMoE: one model but for the MLPs, which routers mix for each input",
    reference="https://arxiv.org/abs/2402.00433",
    requires=Requires(base=True, calibration=True, own_inputs=True, shared_init=True),
    run=run,
    options=WemoeOptions,
    per_task=True,
)
