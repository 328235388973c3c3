"""ZipFit: the streams are mapped to one, then every layer is refitted in closed form."""

from hf_zip.method import MergeInputs, MergeMethod, Requires
from hf_zip.outcome import Merged
from hf_zip.refit.post_norm import zipfit_post_norm
from hf_zip.refit.zipfit import FitOptions, zipfit


def run(inputs: MergeInputs, options: FitOptions) -> Merged:
    """Returns one model fitted, layer by layer, to what all sources compute on the same inputs."""
    runtime = inputs.runtime
    fit = zipfit if runtime.adapter.pre_norm else zipfit_post_norm
    fitted = fit(
        runtime.models,
        runtime.adapter,
        runtime.calibration,
        options,
        **runtime.running,
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
    requires=Requires(calibration=True, canonical=True, or_post_norm=True, plain_scores=True),
    run=run,
    options=FitOptions,
)
