"""What the fits of all post-norm blocks share: the models, their inputs and the streams so far."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import layer_norm

from hf_zip.groups import Block, Tap
from hf_zip.refit.post_norm.basis import Basis
from hf_zip.refit.post_norm.running import Batch
from hf_zip.refit.survey import run_block
from hf_zip.refit.work import Work


@dataclass(frozen=True)
class PostNormWork(Work):
    """The models of a fit and what is held of their streams, padding included where it says so.

    Held are, models and features of each side by side: `teachers`, the streams of all teachers, and
    `merged`, that of the merged model, `[inputs, tokens, n]` with padding; and for a while, as rows
    of real tokens: `attention` and `mlp`, what the teachers' layers write, and `middle`, their
    streams between attention and MLP.

    Args:
        batches: The inputs of this process.
        basis: What the merged stream should hold.
    """

    batches: tuple[Batch, ...]
    basis: Basis

    def rows(self, name: str, batch: int) -> Float[Tensor, "rows n"]:
        """Returns the real tokens of a stream that is held with padding."""
        return self.held[name, batch][self.batches[batch].real]

    def run_student(
        self, layer: Block, batch: int, taps: Sequence[Tap]
    ) -> tuple[Float[Tensor, "inputs tokens width"], dict[Tap, Tensor]]:
        """Returns the merged stream after a block, and what was seen of real tokens at the taps."""
        stream, given = [self.held["merged", batch]], self.batches[batch]
        (after,), (seen,) = run_block(
            [self.student], layer.name, stream, taps, given.call, given.real
        )
        return after, seen

    def run_teachers(
        self, layer: Block, batch: int, taps: Sequence[Tap]
    ) -> list[dict[Tap, Tensor]]:
        """Moves the teachers' streams past a block; returns what was seen of each at the taps."""
        before = self.held["teachers", batch].chunk(len(self.teachers), dim=-1)
        given = self.batches[batch]
        after, seen = run_block(self.teachers, layer.name, before, taps, given.call, given.real)
        self.held["teachers", batch] = torch.cat(after, dim=-1)
        return seen


def energies(
    wanted: Float[Tensor, "rows width"], merged: Float[Tensor, "rows width"]
) -> Float[Tensor, "2"]:
    """Returns what the merged stream leaves of the energy that is wanted, and that energy."""
    return torch.stack([(wanted - merged).square().sum(), wanted.square().sum()])


def centred(rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
    """Returns rows without their mean over the features, which a normalisation ignores."""
    return rows - rows.mean(dim=1, keepdim=True)


def scales(rows: Float[Tensor, "rows width"], eps: float) -> Float[Tensor, " rows"]:
    """Returns what a normalisation divides its rows by."""
    return (rows.var(dim=1, correction=0) + eps).sqrt()


def normalised(rows: Float[Tensor, "rows width"], eps: float) -> Float[Tensor, "rows width"]:
    """Returns what a normalisation without gain and bias makes of rows."""
    return layer_norm(rows, rows.shape[1:], eps=eps)
