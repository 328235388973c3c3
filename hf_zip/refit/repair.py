"""REPAIR for transformers: the spread of features, which a mean of models loses, is restored."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_zip.adapters import Adapter
from hf_zip.align import shares
from hf_zip.calls import Call, first_call
from hf_zip.collect import capture, make_accelerator, make_loader
from hf_zip.groups import Block, Tap, blocks, merge_groups
from hf_zip.matching.merge_map import MergeMap
from hf_zip.refit.head import trunk_of, with_trunk
from hf_zip.refit.held import Held
from hf_zip.refit.spread import Spread, mapped_spreads, mean_spread, rescale, spread_of
from hf_zip.statistics.variance import Variance

# Linear layers that are repaired at once, each with the merge group that it writes.
Stage = tuple[tuple[str, str], ...]


@torch.no_grad()
def repair(
    trunk: Mapping[str, Tensor],
    models: Sequence[PreTrainedModel],
    adapter: Adapter,
    inputs: Any,
    maps: Mapping[str, MergeMap],
    weights: Sequence[float] | None = None,
    memory: float = 4.0,
    batch_size: int = 32,
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns a merged trunk whose features spread as the models' do, and its config's changes.

    Features that do not quite agree cancel in a mean, so a merged model's features vary less from
    layer to layer. In the order in which they run, every linear layer of the blocks is scaled and
    shifted, output by output, to the means and standard deviations that the models' mapped outputs
    have in the mean; its weight and bias take that up exactly. An output that does not vary is left
    as it is. Queries, keys and values without a bias get one if the config has a `qkv_bias`; any
    other layer without a bias is only scaled.

    Args:
        trunk: Parameters of the mean of the mapped models by name, heads left out.
        models: The models in the form that was merged; left unchanged.
        adapter: Their family's table.
        inputs: A map-style data set of keyword arguments for the models.
        maps: The merge maps by name of the merge group.
        weights: Share of each model in the mean; left out, all are equal.
        memory: What each process may hold of the merged model's streams in memory, in GiB; the
            rest goes to temporary files.
        batch_size: Inputs per forward.
        accelerator: The accelerator to run under; made here when left out.
        progress: Show progress bars, on the main process.

    Raises:
        HfZipError: There are no inputs, or features are not finite.

    Source: REPAIR (https://arxiv.org/abs/2211.08403), section 3. Deviations: transformers have no
    batch normalisations to set the moments by, so weights and biases take them up, and layers are
    repaired one after another, each on what the repaired ones before it give.
    """
    accelerator = accelerator or make_accelerator()
    models = [model.to(accelerator.device).eval() for model in models]
    stages = _stages(models[0], adapter)
    merged = with_trunk(models[0], trunk)
    config = _add_biases(merged, stages)
    loader = make_loader(inputs, batch_size, accelerator)

    def bar(items: Iterable[Any], title: str) -> Iterable[Any]:
        return tqdm(items, desc=title, disable=not progress, leave=False)

    written = {name: group for of in stages.values() for stage in of for name, group in stage}
    spreads = [
        mapped_spreads(
            model,
            {n: maps[g].merge[k] if g in maps else None for n, g in written.items()},
            bar(loader, "spread of the sources"),
            accelerator,
        )
        for k, model in enumerate(models)
    ]
    parts = shares(len(models), weights)
    wanted = {name: mean_spread([own[name] for own in spreads], parts) for name in written}
    with Held(memory, accelerator.device) as held:
        streams = _streams(merged, next(iter(stages)), held, loader)
        for block, of in bar(stages.items(), "repairing blocks"):
            for stage in of:
                names = [name for name, _ in stage]
                for name, found in streams.spreads(block, names, accelerator).items():
                    rescale(merged.get_submodule(name), found, wanted[name])
            streams.advance(block)
    return trunk_of(merged, adapter), config


def _stages(model: PreTrainedModel, adapter: Adapter) -> dict[Block, tuple[Stage, ...]]:
    """For every block its linear layers in the order in which they run."""
    (stream,), queries, values, units = (
        [group.name for group in merge_groups(model, adapter) if group.role == role]
        for role in ("stream", "query_key", "value", "mlp")
    )
    return {
        block: (
            ((block.query, query_key), (block.key, query_key), (block.value, value)),
            ((block.output, stream),),
            ((block.mlp_in, mlp),),
            ((block.mlp_out, stream),),
        )
        for block, query_key, value, mlp in zip(
            blocks(model, adapter), queries, values, units, strict=True
        )
    }


def _add_biases(model: PreTrainedModel, layers: Iterable[Block]) -> dict[str, Any]:
    """Gives queries, keys and values a bias where the class can have one; what the config lacks."""
    if getattr(model.config, "qkv_bias", True):
        return {}
    for layer in layers:
        for name in (layer.query, layer.key, layer.value):
            linear = model.get_submodule(name)
            if linear.bias is None:
                weight = linear.get_parameter("weight")
                linear.bias = nn.Parameter(weight.new_zeros(len(weight)))
    return {"qkv_bias": True}


@dataclass(frozen=True)
class _Streams:
    """The merged model and its streams before one block.

    Args:
        model: The merged model.
        held: The streams, by batch.
        calls: For every batch what the blocks are called with beside the stream, and which tokens
            are no padding.
    """

    model: PreTrainedModel
    held: Held
    calls: tuple[tuple[Call, Tensor | None], ...]

    def spreads(
        self, block: Block, names: Sequence[str], accelerator: Accelerator
    ) -> dict[str, Spread]:
        """Returns how the outputs of some of a block's linear layers spread."""
        module, taps = self.model.get_submodule(block.name), [Tap(name, "output") for name in names]
        sums = [
            Variance(len(self.model.get_parameter(f"{name}.weight")), accelerator.device)
            for name in names
        ]
        for batch, (call, mask) in enumerate(self.calls):
            with capture(self.model, taps, mask) as seen:
                call.again(module, self.held["stream", batch])
            for tap, statistic in zip(taps, sums, strict=True):
                statistic.update(seen[tap])
        found = [spread_of(statistic, accelerator) for statistic in sums]
        return dict(zip(names, found, strict=True))

    def advance(self, block: Block) -> None:
        """Moves the streams past a block."""
        module = self.model.get_submodule(block.name)
        for batch, (call, _) in enumerate(self.calls):
            self.held["stream", batch] = call.again(module, self.held["stream", batch])


def _streams(
    model: PreTrainedModel, first: Block, held: Held, loader: Iterable[Mapping[str, Tensor]]
) -> _Streams:
    """The streams before the first block."""
    calls = []
    for batch, inputs in enumerate(loader):
        stream, call = first_call(model, first.name, inputs)
        held["stream", batch] = stream
        calls.append((call, inputs.get("attention_mask")))
    return _Streams(model, held, tuple(calls))
