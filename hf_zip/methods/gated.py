"""A gate: it says whose an input is, and mixes by that what models do not share."""

from dataclasses import dataclass, replace
from typing import Literal

from hf_zip.gating import GateAfter, merge_gated
from hf_zip.method import MergeInputs, MergeMethod, Requires
from hf_zip.outcome import Merged
from hf_zip.ranges import check_between


@dataclass(frozen=True)
class GatedOptions:
    """How much is merged into one, and how the rest is chosen for an input.

    Args:
        shared: Which part of the parameters is merged into one, by number and the most alike first;
            0 keeps all apart that is not the same in all models.
        gate_after: How many blocks of the shared model run before what the gate reads, or "head"
            for what goes into the task head.
        routing: "soft" mixes what the models have of their own by how likely an input is of their
            tasks; "top" takes that of the likeliest alone.
        penalty: Ridge of the gate, as a share of the mean variance of what it reads, from 1e-9 on.
    """

    shared: float = 0.5
    gate_after: GateAfter = 0
    routing: Literal["soft", "top"] = "soft"
    penalty: float = 0.1

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_between("shared", self.shared)
        check_between("penalty", self.penalty, 1e-9, float("inf"))
        if self.gate_after != "head":
            check_between("gate_after", self.gate_after, 0, float("inf"))

    def needs(self, requires: Requires) -> Requires:
        """Returns what is needed: no common weights where none are ever mixed."""
        return replace(requires, shared_init=self.shared > 0 or self.routing == "soft")


def run(inputs: MergeInputs, options: GatedOptions) -> Merged:
    """Returns means of the tensors that are most alike, the others as they are, and a gate.

    Source: Merging Vision Transformers from Different Tasks and Domains
    (https://arxiv.org/abs/2312.16240): a gate predicts from an input whose it is, models are merged
    by these probabilities, layers of all kinds, and the heads are weighed by them; layers that are
    alike are merged into one beforehand. Choices: alike are tensors with little distance, see
    `hf_zip.combining.likeness`, and their mean is taken. The gate is a linear discriminant, solved
    for, that reads what goes into the first block, in the mean over tokens, so that an input costs
    one forward; it could read what comes after more blocks. A label is as likely as its task by the
    gate, times as it is within the task.
    """
    return merge_gated(inputs, options.shared, options.gate_after, options.routing, options.penalty)


ENTRY = MergeMethod(
    name="gated",
    title="A gate mixes for each input what is least alike in models; the rest is merged",
    reference="https://arxiv.org/abs/2312.16240",
    requires=Requires(calibration=True, own_inputs=True, shared_init=True, elementwise=True),
    run=run,
    options=GatedOptions,
    per_task=True,
)
