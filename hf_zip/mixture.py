"""Fine-tunes of one base → what they share, and MLPs that are mixed for each input by routers."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import Tensor, nn

from hf_zip.align import mean
from hf_zip.aligned import split_heads
from hf_zip.errors import HfZipError
from hf_zip.groups import blocks
from hf_zip.learned import learned
from hf_zip.method import MergeInputs
from hf_zip.modeling.modeling_hf_zip_mixture import RoutedMlp, mixing
from hf_zip.outcome import Merged, Mixture
from hf_zip.side_by_side import SideBySide, distinct_sets
from hf_zip.training.learner import Learner
from hf_zip.training.options import TrainingOptions
from hf_zip.training.trained import Trained
from hf_zip.undecided import deciding_kinds, entropy_of_merge, identity_of

Places = tuple[tuple[str, str], ...]
_SPREAD = 0.01  # of the random weights that a router begins with


def merge_mixture(
    inputs: MergeInputs, method: str, scaling: float, layers: int, training: TrainingOptions
) -> Merged:
    """Returns task arithmetic of all but the MLPs, and MLPs with task vectors and trained routers.

    What is shared of an MLP is the base's; what the base lacks is averaged. A router begins by
    adding every task vector times `scaling`, whatever the input. The arithmetic is in float32, or
    float64 where a model is.

    Args:
        inputs: What the method works on.
        method: Its name.
        scaling: Factor of the sum of task vectors, and what routers begin with.
        layers: How many linear layers a router has.
        training: How routers are trained, to lower the entropy of each model's head.

    Raises:
        HfZipError: There is no head, one stays apart or chooses nothing, or there are no inputs.
    """
    runtime = inputs.runtime
    kinds = deciding_kinds(method, inputs)
    if not inputs.heads:
        raise HfZipError(
            f"{method} gives one model with the rows of all heads side by side, and "
            f"{type(runtime.models[0]).__name__} has no head with rows of its own labels; give "
            "classifiers of one class, or use 'emr'"
        )
    found = blocks(runtime.models[0], runtime.adapter)
    places = tuple((block.mlp_in, block.mlp_out) for block in found)
    heads, _ = split_heads(inputs, inputs.states)
    shared, vectors = _shared(inputs, places, scaling)
    mlps = _mlps(inputs, places, vectors, scaling, layers)
    trained = _train(inputs, method, kinds, shared, places, mlps, training)
    parts = tuple({n: x.detach().cpu() for n, x in learned(mlp).items()} for mlp in mlps)
    return Merged(
        state=shared,
        heads=heads,
        kept=Mixture(places, parts, layers),
        provenance={"trainings": (trained,)},
    )


@torch.no_grad()
def _shared(
    inputs: MergeInputs, places: Places, scaling: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The shared parameters, and the task vectors of the MLPs."""
    shared, vectors = dict[str, Tensor](), dict[str, Tensor]()
    _, trunks = split_heads(inputs, inputs.states)
    mixed = tuple(f"{name}." for names in places for name in names)
    base = inputs.base or {}
    for name, first in trunks[0].items():
        own = [trunk[name].to(torch.promote_types(first.dtype, torch.float32)) for trunk in trunks]
        middle = mean([{name: tensor} for tensor in own])[name]
        origin = base[name].to(middle.dtype) if name in base else middle
        differences = torch.stack(own) - origin
        if name.startswith(mixed):
            shared[name], vectors[name] = origin, differences
        else:
            shared[name] = origin + scaling * differences.sum(dim=0) if name in base else middle
    return shared, vectors


@torch.no_grad()
def _mlps(
    inputs: MergeInputs,
    places: Places,
    vectors: Mapping[str, Tensor],
    scaling: float,
    layers: int,
) -> list[RoutedMlp]:
    """The MLPs with what is added to them, and routers at their start."""
    model, device = inputs.runtime.models[0], inputs.runtime.accelerator.device
    generator, made = torch.Generator().manual_seed(inputs.seed), []
    for first, second in places:
        one, two = (cast("nn.Linear", model.get_submodule(name)) for name in (first, second))
        with torch.random.fork_rng(devices=[]):
            mlp = RoutedMlp(one, two, len(inputs.states), layers)
        mlp.to(vectors[f"{first}.weight"].dtype)
        for name, tensor in mlp.vectors.tensors():
            place, _, leaf = name.partition(".")
            tensor.copy_(vectors[f"{first if place == 'first' else second}.{leaf}"])
        *hidden, last = (own for own in mlp.router if isinstance(own, nn.Linear))
        for linear in hidden:
            linear.weight.copy_(_SPREAD * torch.randn(linear.weight.shape, generator=generator))
            linear.bias.zero_()
        last.weight.zero_()  # so that the start is the same for every input
        last.bias.fill_(scaling)
        made.append(mlp.to(device))
    return made


def _train(
    inputs: MergeInputs,
    method: str,
    kinds: Sequence[Any],
    shared: Mapping[str, Tensor],
    places: Places,
    mlps: Sequence[RoutedMlp],
    training: TrainingOptions,
) -> Trained:
    """Trains the routers in place."""
    from hf_zip.training.train import train  # whose transformers.Trainer takes seconds to import

    runtime, device = inputs.runtime, inputs.runtime.accelerator.device
    models = [model.to(device).eval() for model in runtime.models]
    merged = {name: tensor.to(device) for name, tensor in shared.items()}
    sets, which = distinct_sets(runtime.feeds)

    def loss(_: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        losses = []
        for model, kind, place in zip(models, kinds, which, strict=True):
            given = batch[str(place)]
            with mixing(given.get("attention_mask")):
                losses.append(entropy_of_merge([model], merged, [kind], [given]))
        return torch.stack(losses).sum(dim=0)

    with ExitStack() as attached:
        for model in models:
            for names, mlp in zip(places, mlps, strict=True):
                linears = (model.get_submodule(name) for name in names)
                for handle in mlp.attach(*linears):
                    attached.callback(handle.remove)
        return train(
            Learner(nn.ModuleList([mlp.router for mlp in mlps]), loss),
            SideBySide(sets),
            training,
            inputs.seed,
            identity=identity_of(inputs, training, {"method": method}),
            description="routers",
            progress=runtime.progress,
        )
