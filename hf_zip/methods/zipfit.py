"""ZipFit: the streams are mapped to one, then every layer is refitted in closed form."""

from dataclasses import dataclass
from typing import Literal

from hf_zip.errors import HfZipError
from hf_zip.methods import Merged, MergeInputs, MergeMethod, Requires
from hf_zip.refit.zipfit import FitOptions, zipfit


@dataclass(frozen=True)
class ZipFitOptions:
    """Options of the layerwise refit.

    Args:
        size: Width of the merged model's stream, heads and MLPs, relative to one source; from
            0.1 to the number of sources.
        penalty: Ridge of the fits inside the blocks, as a share of the mean diagonal of the Gram.
        head_penalty: The same for the task head.
        heads: "all" keeps the heads of all sources at a lower rank; "select" keeps as many as one
            source has, at full rank; "auto" selects where that loses next to nothing.
    """

    size: float = 1.0
    penalty: float = 1e-3
    head_penalty: float = 1e-3
    heads: Literal["auto", "all", "select"] = "auto"

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not self.size >= 0.1:
            raise HfZipError(f"zipfit's size is {self.size}; it should be at least 0.1")
        for name, value in (("penalty", self.penalty), ("head_penalty", self.head_penalty)):
            if not value >= 0:
                raise HfZipError(f"zipfit's {name} is {value}; it should be at least 0")


def run(inputs: MergeInputs, options: ZipFitOptions) -> Merged:
    """Returns one model fitted, layer by layer, to what all sources compute on the same inputs."""
    if options.size > len(inputs.states):
        raise HfZipError(
            f"zipfit's size is {options.size}, larger than all {len(inputs.states)} models "
            "together; it should be at most their number"
        )
    runtime = inputs.runtime
    fitted = zipfit(
        runtime.models,
        runtime.adapter,
        runtime.calibration,
        FitOptions(options.size, options.penalty, options.head_penalty, options.heads),
        runtime.batch_size,
        runtime.accelerator,
        runtime.progress,
    )
    return Merged(
        state=fitted.state,
        heads=fitted.heads,
        provenance={"explained": dict(fitted.explained)},
        config=fitted.config,
    )


ENTRY = MergeMethod(
    name="zipfit",
    title="Streams mapped to one, then every layer refitted by least squares",
    reference="https://arxiv.org/abs/2407.02447",
    requires=Requires(calibration=True),
    run=run,
    options=ZipFitOptions,
)
