"""Inputs of every model's own → weights and biases that tell whose an input is."""

import copy

import torch
from torch import Tensor

from hf_zip.collect import reduced
from hf_zip.combining.exclusive import discriminant
from hf_zip.errors import HfZipError
from hf_zip.learned import learned
from hf_zip.method import MergeInputs
from hf_zip.modeling.modeling_hf_zip_routed import features_of
from hf_zip.statistics.covariance import Covariance
from hf_zip.weighing.feed import Run


@torch.no_grad()
def fit_router(
    inputs: MergeInputs, state: dict[str, Tensor], reads: str, penalty: float
) -> tuple[Tensor, Tensor]:
    """Returns weights and biases that tell by what goes into a module whose an input is.

    Args:
        inputs: What the method works on; inputs of each model's own are what it tells apart.
        state: Parameters of the shared model, with the first model's head.
        reads: Name of the module.
        penalty: Ridge, as a share of the mean variance of the features.
    """
    runtime = inputs.runtime
    model = copy.deepcopy(runtime.models[0])
    for name, tensor in learned(model).items():
        tensor.copy_(state[name])
    model.to(runtime.accelerator.device).eval()
    run, found = Run(runtime.accelerator, runtime.progress), list[Covariance]()
    for feed in runtime.feeds:
        size = features_of(model, reads, feed.one(runtime.accelerator)).shape[1]
        moments = Covariance(size, runtime.accelerator.device)
        for batch in run.batches(feed, "router"):
            moments.update(features_of(model, reads, batch))
        found.append(reduced(moments, runtime.accelerator))
    means = torch.stack([moments.mean().cpu() for moments in found])
    spread = torch.stack([moments.covariance().cpu() for moments in found]).mean(dim=0)
    return discriminant(means, spread, penalty)


def check_routed(inputs: MergeInputs) -> None:
    """Checks that there is what a router and stacked heads need.

    Raises:
        HfZipError: There is no head whose rows could stand side by side, or a model has no inputs
            of its own, by which it could be told.
    """
    if not inputs.heads:
        raise HfZipError(
            "inputs are routed by what goes into a task head, to heads whose rows stand side by "
            f"side, and {type(inputs.runtime.models[0]).__name__} has none or they stay apart; "
            "give classifiers of one class, or use 'emr'"
        )
    own = inputs.runtime.own
    lacking = [i for i in range(len(inputs.states)) if i >= len(own) or own[i] is None]
    if lacking:
        raise HfZipError(
            f"models.{lacking[0]} has no inputs of its own, by which the router could tell its "
            "task from the others'; give every model some, such as 'calibration: {data: images/}'"
        )
