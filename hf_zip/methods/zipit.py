"""ZipIt!: features are matched across and within models, merged and unmerged."""

from dataclasses import dataclass

from hf_zip.aligned import Refit, merge_aligned
from hf_zip.errors import HfZipError
from hf_zip.match import How, Plan, match
from hf_zip.method import MergeInputs, MergeMethod, Requires
from hf_zip.outcome import Merged


@dataclass(frozen=True)
class ZipItOptions:
    """Options of the greedy zip, in the paper's symbols.

    Args:
        alpha: In (0, 1]: how much of its similarity a cluster keeps after a merge. Below 1, chains
            of repeated merges are discouraged (section 4.3).
        beta: In [0, 1]: share of each model's merges that may be within the model (section 4.3).
        stream: How the residual stream is matched.
        heads: How attention heads are matched, as wholes.
        mlp: How the hidden units of the MLPs and of the poolers are matched.
        refit: "head" fits the task heads anew, by least squares on the calibration inputs; "repair"
            restores mean and deviation of what every layer gives; "all" fits every layer to the
            mean of the matched features.
    """

    alpha: float = 0.1
    beta: float = 1.0
    stream: How = "zip"
    heads: How = "zip"
    mlp: How = "zip"
    refit: Refit = "none"

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not 0 < self.alpha <= 1:
            raise HfZipError(f"zipit's alpha is {self.alpha}; it should be in (0, 1]")
        if not 0 <= self.beta <= 1:
            raise HfZipError(f"zipit's beta is {self.beta}; it should be in [0, 1]")


def run(inputs: MergeInputs, options: ZipItOptions) -> Merged:
    """Returns the zip of the models, one model of the same size.

    Source: ZipIt! (https://arxiv.org/abs/2305.03053), section 4. Deviations: attention heads are
    zipped as wholes, since features of different heads cannot mix; the correlation of the stream is
    the mean over the outputs of the embeddings and of every block.
    """
    plan = Plan(options.stream, options.heads, options.mlp, options.alpha, options.beta)
    matching = match(inputs.groups, inputs.covariances, len(inputs.states), plan)
    return merge_aligned(inputs, matching, refit=options.refit)


ENTRY = MergeMethod(
    name="zipit",
    title="ZipIt!: features matched across and within models, merged and unmerged",
    reference="https://arxiv.org/abs/2305.03053",
    requires=Requires(calibration=True, covariances=True),
    run=run,
    options=ZipItOptions,
)
