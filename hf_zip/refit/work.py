"""What the fits of all blocks share: the models, the map and the streams so far."""

from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_zip.collect import Sums, reduced
from hf_zip.refit.held import Held
from hf_zip.refit.shape import Shape

S = TypeVar("S", bound=Sums)


@dataclass(frozen=True)
class Work:
    """The models of a fit and, by name and batch of this process, what is held of their streams.

    Held are, models and features of each side by side: `teachers`, the streams of all teachers,
    `[inputs, tokens, n]`; `merged`, that of the merged model, `[inputs, tokens, width]`; and for a
    while, as rows: `middle`, the teachers' streams between attention and MLP, `contexts`, what the
    merged model's heads attend to, and `gap`, what its stream lacks.

    Args:
        student: The merged model; its parameters are set one after another.
        teachers: Models in canonical form.
        shape: Sizes of the merged model.
        matrix: Maps the teachers' streams, side by side, to the merged one.
        penalty: Ridge of the fits.
        held: The streams.
        num_batches: Number of batches of this process.
        num_rows: Number of rows of all processes.
        accelerator: Adds up the sums of all processes.
    """

    student: PreTrainedModel
    teachers: tuple[PreTrainedModel, ...]
    shape: Shape
    matrix: Float[Tensor, "width n"]
    penalty: float
    held: Held
    num_batches: int
    num_rows: int
    accelerator: Accelerator

    def reduced(self, statistic: S) -> S:
        """Returns a statistic after it has received the sums of all processes."""
        return reduced(statistic, self.accelerator)

    def merged_rows(self, batch: int) -> Float[Tensor, "rows width"]:
        """Returns the merged model's stream of a batch as rows."""
        return self.held["merged", batch].flatten(0, 1)

    def hold_gap(self, batch: int, streams: Float[Tensor, "rows n"]) -> Float[Tensor, "rows width"]:
        """Returns, and holds, what the merged stream lacks of the mapped streams of the teachers.

        Whatever writes to the stream next is fitted to this residual, not to what its counterparts
        write, so that errors of the blocks before are made up for instead of carried on.
        """
        gap = streams @ self.matrix.T - self.merged_rows(batch)
        self.held["gap", batch] = gap
        return gap

    def advance(self, batch: int, written: Float[Tensor, "rows width"]) -> Float[Tensor, "2"]:
        """Adds what a layer writes to the merged stream; returns the energies left and wanted."""
        merged = self.held["merged", batch]
        gap = self.held.pop("gap", batch) - written
        merged = merged + written.view_as(merged)
        self.held["merged", batch] = merged
        return torch.stack([gap.square().sum(), (merged.flatten(0, 1) + gap).square().sum()])

    def explained(self, energies: list[Float[Tensor, "2"]]) -> float:
        """Returns the share of the mapped streams' energy that the merged stream holds."""
        total = sum((pair.cpu().double() for pair in energies), torch.zeros(2, dtype=torch.float64))
        if self.accelerator.num_processes > 1:
            total = self.accelerator.reduce(total.to(self.accelerator.device), reduction="sum")
        left, wanted = total.tolist()
        return 1 - left / wanted


def set_linear(linear: nn.Module, weight: Tensor, bias: Tensor | None = None) -> None:
    """Sets a linear layer; left out, its bias becomes zero, if it has one."""
    linear.get_parameter("weight").copy_(weight)
    if bias is not None:
        linear.get_parameter("bias").copy_(bias)
    elif linear.bias is not None:
        linear.get_parameter("bias").zero_()
