"""Linear layers merged by regression from the first to the last, on what the merged ones give."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_zip.adapters import Adapter
from hf_zip.align import State
from hf_zip.calls import Call, first_call
from hf_zip.collect import reduced
from hf_zip.combining.regression import nearest, shrunk
from hf_zip.groups import blocks
from hf_zip.refit.head import with_trunk
from hf_zip.refit.held import Held
from hf_zip.weighing.feed import Feed, Run
from hf_zip.weighing.layers import each_input, linear_layers, readers
from hf_zip.weighing.regmean import (
    RegressionOptions,
    difference,
    input_sums,
    note_others,
    second_moments,
)

Moments = dict[str, Float64[Tensor, "n n"]]


@torch.no_grad()
def merged_in_order(
    models: Sequence[PreTrainedModel],
    adapter: Adapter,
    states: Sequence[State],
    mean: State,
    feeds: Sequence[Feed],
    shares: Sequence[float],
    options: RegressionOptions,
    run: Run,
) -> Iterator[tuple[str, Tensor]]:
    """Yields the name and the merged matrix of every linear layer, in float64.

    Each block of every model runs on the streams that the merged blocks before it give of that
    model's inputs. What goes into its layers decides the merged block, which then moves the streams
    on. Layers outside the blocks are merged where a forward calls them, on what goes into them in
    the model as merged so far.

    Args:
        models: Models of one class; they are moved to the accelerator's device.
        adapter: Their family's table.
        states: Their parameters by name, heads left out.
        mean: The weighted mean of these.
        feeds: What each of the models runs on.
        shares: Share of each model; their sum is 1.
        options: How to merge; `memory` is for the streams, the rest goes to temporary files.
        run: How models are run.

    Raises:
        HfZipError: A model has no inputs, or features are not finite.
    """
    device = run.accelerator.device
    models = [model.to(device).eval() for model in models]
    merged = with_trunk(models[0], mean).eval()
    layers = linear_layers(merged, mean.keys())
    same = readers(merged, layers, feeds[0].one(run.accelerator))
    note_others(layers, same)
    names = [block.name for block in blocks(merged, adapter)]
    with ExitStack() as stack:
        streams: _Streams | None = None
        for stage, of in run.bar(_stages(same, names).items(), "merging layers"):
            firsts = list(of)
            if stage not in names:
                title = f"inputs of {stage}"
                moments = [second_moments(merged, firsts, feed, run, title) for feed in feeds]
            else:
                if streams is None or streams.place != stage.rpartition(".")[0]:
                    stack.close()  # the streams of another tower
                    held = stack.enter_context(Held(options.memory, device))
                    streams = _streams(merged, stage, feeds, held, run)
                moments = [
                    streams.moments(position, model, stage, firsts, run)
                    for position, model in enumerate(models)
                ]
            for first, reading in of.items():
                grams = [shrunk(found[first], options.alpha) for found in moments]
                for name in (f"{layer}.weight" for layer in reading):
                    own = [state[name] for state in states]
                    matrix = _merged(own, mean[name], grams, shares)
                    merged.get_parameter(name).copy_(matrix)
                    yield name, matrix.cpu()
            if streams is not None and stage in names:
                streams.advance(merged.get_submodule(stage))


def _stages(same: Mapping[str, str], names: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Blocks and layers outside of them in the order in which they run.

    Each with its layers, by the first that reads the same.
    """
    found = dict[str, dict[str, list[str]]]()
    for layer, first in same.items():
        stage = next((name for name in names if layer.startswith(f"{name}.")), layer)
        of = found.setdefault(stage, {})
        of.setdefault(first if first in of else layer, []).append(layer)
    return found


def _merged(
    own: Sequence[Tensor], start: Tensor, grams: Sequence[Tensor], shares: Sequence[float]
) -> Tensor:
    parts = list(zip(own, grams, shares, strict=True))
    total = torch.stack([share * gram for _, gram, share in parts]).sum(dim=0)
    pull = torch.stack([difference(x, start, g) @ (s * g) for x, g, s in parts]).sum(dim=0)
    return nearest(start.to(total), pull, total, torch.finfo(start.dtype).eps)


@dataclass(frozen=True)
class _Streams:
    """What the merged model's blocks of one tower have made so far of each model's inputs.

    Args:
        place: The list of blocks.
        held: The streams, by model and batch.
        calls: For every model and batch what the blocks are called with beside the stream, and
            which tokens are no padding.
    """

    place: str
    held: Held
    calls: tuple[tuple[tuple[Call, Tensor | None], ...], ...]

    def moments(
        self, position: int, model: PreTrainedModel, block: str, layers: Sequence[str], run: Run
    ) -> Moments:
        """Returns the second moments of what goes into layers of a model's own block."""
        sums = input_sums(model, layers, run)
        module = model.get_submodule(block)
        for batch, (call, mask) in enumerate(self.calls[position]):
            with each_input(model, layers, mask, lambda name, x: sums[name].update(x)):
                call.again(module, self.held[str(position), batch])
        return {name: reduced(own, run.accelerator).second_moment() for name, own in sums.items()}

    def advance(self, block: nn.Module) -> None:
        """Moves all streams past a merged block."""
        for position, calls in enumerate(self.calls):
            for batch, (call, _) in enumerate(calls):
                key = (str(position), batch)
                self.held[key] = call.again(block, self.held[key])


def _streams(
    model: PreTrainedModel, block: str, feeds: Sequence[Feed], held: Held, run: Run
) -> _Streams:
    """The streams before the first block of a tower."""
    found = []
    for position, feed in enumerate(feeds):
        calls = []
        for batch, inputs in enumerate(run.batches(feed, f"inputs of model {position + 1}")):
            stream, call = first_call(model, block, inputs)
            held[str(position), batch] = stream
            calls.append((call, inputs.get("attention_mask")))
        found.append(tuple(calls))
    return _Streams(block.rpartition(".")[0], held, tuple(found))
