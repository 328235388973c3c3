"""One block of the merged model, solved for what the same blocks of all teachers do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from hf_zip.collect import capture
from hf_zip.groups import Block, Tap
from hf_zip.matching.selection import select_features, select_heads
from hf_zip.refit.heads import truncate_scores, truncate_values
from hf_zip.refit.moments import RegressionMoments
from hf_zip.statistics.covariance import Covariance

# MLP units are chosen on about so many rows: the choice hardly matters, its Gram matrix is large.
SELECTION_ROWS = 8192


@dataclass(frozen=True)
class Shape:
    """Sizes of the merged model.

    Args:
        width: Features of the stream.
        units: Hidden units of each MLP.
        num_heads: Heads of each attention.
        head_width: Features of each head.
        select: Whether heads are selected at full rank, instead of all being kept at a lower one.
        teacher_heads: Heads of each attention of one teacher.
    """

    width: int
    units: int
    num_heads: int
    head_width: int
    select: bool
    teacher_heads: int

    def config(self) -> dict[str, int]:
        """Returns the entries of the config that these sizes decide."""
        return {
            "hidden_size": self.width,
            "intermediate_size": self.units,
            "num_attention_heads": self.num_heads,
        }


@dataclass
class Batch:
    """The streams of one batch: each teacher's and the merged model's.

    Args:
        teachers: Each teacher's stream before the current block, `[inputs, tokens, features]`.
        merged: The merged model's stream so far.
        middle: Each teacher's stream between attention and MLP, `[rows, features]`.
        after: Each teacher's stream after the block.
        contexts: What all heads attend to, `[rows, features]`.
    """

    teachers: list[Tensor]
    merged: Tensor
    middle: Tensor = field(default_factory=lambda: torch.empty(0))
    after: list[Tensor] = field(default_factory=list)
    contexts: Tensor = field(default_factory=lambda: torch.empty(0))

    @classmethod
    def start(
        cls,
        student: PreTrainedModel,
        teachers: Sequence[PreTrainedModel],
        inputs: Mapping[str, Tensor],
        embedding: str,
    ) -> "Batch":
        """Returns the streams of a batch before the first block."""
        pixels = inputs[student.main_input_name].to(student.dtype)
        embedded = [model.get_submodule(embedding)(pixels) for model in (*teachers, student)]
        return cls(embedded[:-1], embedded[-1])

    @property
    def rows(self) -> Tensor:
        """The merged model's stream as `[rows, features]`."""
        return self.merged.flatten(0, 1)

    def target(self, matrix: Tensor, streams: Tensor) -> Tensor:
        """Returns where the merged stream should be, for streams side by side."""
        return streams @ matrix.T


def reduced(moments: Any, accelerator: Accelerator) -> Any:
    """Returns a statistic summed over all processes."""
    if accelerator.num_processes > 1:
        moments.load_state(accelerator.reduce(moments.state(), reduction="sum"))
    return moments


def fit_block(
    student: PreTrainedModel,
    teachers: Sequence[PreTrainedModel],
    layer: Block,
    matrix: Float[Tensor, "width n"],
    shape: Shape,
    work: Sequence[Batch],
    penalty: float,
    num_rows: int,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Sets one block of the merged model and moves all streams past it.

    Args:
        student: The merged model; its block is set in place.
        teachers: Models in canonical form.
        layer: Names of the block's modules.
        matrix: Maps the teachers' streams, side by side, to the merged one.
        shape: Sizes of the merged model.
        work: This process's batches; they are moved past the block in place.
        penalty: Ridge of the fits.
        num_rows: Rows of all processes.
        accelerator: Sums the moments of all processes.

    Returns:
        The share of the mapped streams' energy that the merged stream holds, after the attention
        and after the MLP.
    """
    fit = _Fit(student, teachers, layer, matrix, shape, penalty, accelerator)
    units = fit.read_teachers(work, num_rows)
    attention = fit.attention(work)
    mlp = fit.mlp(work, units)
    return {"attention": attention, "mlp": mlp}


@dataclass
class _Fit:
    """The fits of one block, in order."""

    student: PreTrainedModel
    teachers: Sequence[PreTrainedModel]
    layer: Block
    matrix: Tensor
    shape: Shape
    penalty: float
    accelerator: Accelerator
    scores: RegressionMoments | None = None

    def __post_init__(self) -> None:
        """Finds the modules of the merged model's block."""
        self.at = {
            role: self.student.get_submodule(getattr(self.layer, role))
            for role in (
                *("attention_norm", "query", "key", "value", "output"),
                *("mlp_norm", "mlp_in", "mlp_out"),
            )
        }
        self.inner = self.teachers[0].get_submodule(self.layer.output).in_features
        self.device = self.accelerator.device

    def read_teachers(self, work: Sequence[Batch], num_rows: int) -> list[Int64[Tensor, "units"]]:
        """Runs the teachers' blocks; returns which MLP units of each are to be kept."""
        width, count = len(self.matrix), len(self.teachers)
        hidden = self.teachers[0].get_submodule(self.layer.mlp_out).in_features
        self.scores = RegressionMoments(width, 3 * count * self.inner, self.device)
        activity = Covariance(count * hidden, device=self.device)
        keeps_all = self.shape.units >= count * hidden
        stride = max(1, num_rows // SELECTION_ROWS)
        projections = [Tap(getattr(self.layer, r), "output") for r in ("query", "key", "value")]
        middle, units = Tap(self.layer.mlp_norm, "input"), Tap(self.layer.mlp_out, "input")
        for batch in work:
            records = []
            batch.after = []
            for teacher, stream in zip(self.teachers, batch.teachers, strict=True):
                with capture(teacher, [*projections, middle, units]) as seen:
                    batch.after.append(teacher.get_submodule(self.layer.name)(stream))
                records.append(seen)
            batch.middle = torch.cat([seen[middle] for seen in records], dim=1)
            targets = [seen[tap] for tap in projections for seen in records]
            normalised = self.at["attention_norm"](batch.merged).flatten(0, 1)
            self.scores.update(normalised, torch.cat(targets, dim=1))
            if not keeps_all:
                active = torch.cat([seen[units][::stride] for seen in records], dim=1)
                activity.update(active)
        reduced(self.scores, self.accelerator)
        if keeps_all:
            return [torch.arange(hidden) for _ in self.teachers]
        return self._choose_units(reduced(activity, self.accelerator).covariance(), hidden)

    def _choose_units(self, covariance: Tensor, hidden: int) -> list[Tensor]:
        # A unit counts by what it writes to the stream, not by how active it is.
        blocks = self.matrix.double().split(self.matrix.shape[1] // len(self.teachers), dim=1)
        written = torch.cat(
            [
                (part @ teacher.get_submodule(self.layer.mlp_out).weight.double()).norm(dim=0)
                for part, teacher in zip(blocks, self.teachers, strict=True)
            ]
        )
        chosen = select_features(
            covariance * torch.outer(written, written).to(covariance), self.shape.units
        )
        ordered = chosen.sort().values
        return [
            ordered[(ordered >= k * hidden) & (ordered < (k + 1) * hidden)] - k * hidden
            for k in range(len(self.teachers))
        ]

    def attention(self, work: Sequence[Batch]) -> float:
        """Fits queries, keys, values and output; moves the merged stream past the attention."""
        count, shape = len(self.teachers) * self.shape.teacher_heads, self.shape
        assert self.scores is not None
        weight, bias = self.scores.fit(self.penalty)
        (query, key, value), (query_bias, _, _) = weight.chunk(3), bias.chunk(3)
        moment, mean = self.scores.second_moment(), self.scores.mean()
        self.scores = None
        rank = self.inner // shape.teacher_heads if shape.select else shape.head_width
        heads = [
            truncate_scores(q, q_bias, k, moment, mean, rank)
            for q, q_bias, k in zip(
                query.chunk(count), query_bias.chunk(count), key.chunk(count), strict=True
            )
        ]
        queries, query_biases, keys = (torch.cat(parts) for parts in zip(*heads, strict=True))

        contexts = RegressionMoments(len(value), len(self.matrix), self.device)
        cast = [part.to(self.student.dtype).to(self.device) for part in (queries, keys, value)]
        cast_bias = query_biases.to(self.student.dtype).to(self.device)
        for batch in work:
            normalised = self.at["attention_norm"](batch.merged)
            split = [
                linear(normalised, part, own).unflatten(-1, (count, -1)).transpose(1, 2)
                for part, own in zip(cast, (cast_bias, None, None), strict=True)
            ]
            attended = scaled_dot_product_attention(*split)
            batch.contexts = attended.transpose(1, 2).flatten(2).flatten(0, 1)
            contexts.update(batch.contexts, batch.target(self.matrix, batch.middle) - batch.rows)
        reduced(contexts, self.accelerator)

        kept, chosen = self._keep_heads(contexts, count)
        output, output_bias = contexts.mapped(kept).fit(self.penalty)
        rows = torch.cat([torch.arange(rank) + head * rank for head in chosen])
        self._set("query", queries[rows], query_biases[rows])
        self._set("key", keys[rows], None)
        self._set("value", kept @ value, None)
        self._set("output", output, output_bias)
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        kept = kept.to(self.student.dtype).to(self.device)
        for batch in work:
            batch.merged = batch.merged + self.at["output"](batch.contexts @ kept.T).view_as(
                batch.merged
            )
            batch.contexts = torch.empty(0)
            total += _energies(batch.target(self.matrix, batch.middle), batch.rows)
        return self._share(total)

    def _keep_heads(self, contexts: RegressionMoments, count: int) -> tuple[Tensor, list[int]]:
        """The map from all contexts to the kept ones, and the heads that they belong to."""
        width, shape = self.inner // self.shape.teacher_heads, self.shape
        covariance = contexts.second_moment() - torch.outer(contexts.mean(), contexts.mean())
        if shape.select:
            chosen = sorted(select_heads(covariance, count, shape.num_heads)[0].tolist())
            eye = torch.eye(count * width, dtype=torch.float64, device=covariance.device)
            return torch.cat([eye[h * width : (h + 1) * width] for h in chosen]), chosen
        output, _ = contexts.fit(self.penalty)
        blocks = [
            truncate_values(
                output[:, h * width : (h + 1) * width],
                covariance[h * width : (h + 1) * width, h * width : (h + 1) * width],
                shape.head_width,
            )
            for h in range(count)
        ]
        return torch.block_diag(*blocks), list(range(count))

    def mlp(self, work: Sequence[Batch], units: Sequence[Tensor]) -> float:
        """Fits both layers of the MLP; moves all streams past the block."""
        width, kept = len(self.matrix), sum(map(len, units))
        first = RegressionMoments(width, kept, self.device)
        for batch in work:
            normalised = self.at["mlp_norm"](batch.rows)
            first.update(normalised, self._pre_activations(batch, units))
        self._set("mlp_in", *reduced(first, self.accelerator).fit(self.penalty))

        second = RegressionMoments(kept, width, self.device)
        for batch in work:
            target = self._target_after(batch)
            second.update(self._active(batch), target - batch.rows)
        self._set("mlp_out", *reduced(second, self.accelerator).fit(self.penalty))
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch in work:
            batch.merged = batch.merged + self.at["mlp_out"](self._active(batch)).view_as(
                batch.merged
            )
            total += _energies(self._target_after(batch), batch.rows)
            batch.teachers, batch.after = batch.after, []
            batch.middle = torch.empty(0)
        return self._share(total)

    def _pre_activations(self, batch: Batch, units: Sequence[Tensor]) -> Tensor:
        streams = batch.middle.chunk(len(self.teachers), dim=1)
        parts = []
        for teacher, stream, own in zip(self.teachers, streams, units, strict=True):
            layer = teacher.get_submodule(self.layer.mlp_in)
            normalised = teacher.get_submodule(self.layer.mlp_norm)(stream)
            parts.append(linear(normalised, layer.weight[own], layer.bias[own]))
        return torch.cat(parts, dim=1)

    def _active(self, batch: Batch) -> Tensor:
        activation: nn.Module = ACT2FN[self.student.config.hidden_act]
        active: Tensor = activation(self.at["mlp_in"](self.at["mlp_norm"](batch.rows)))
        return active

    def _target_after(self, batch: Batch) -> Tensor:
        streams = torch.cat([stream.flatten(0, 1) for stream in batch.after], dim=1)
        return batch.target(self.matrix, streams)

    def _set(self, role: str, weight: Tensor, bias: Tensor | None) -> None:
        self.at[role].weight.copy_(weight)
        if bias is None:
            self.at[role].bias.fill_(0)
        else:
            self.at[role].bias.copy_(bias)

    def _share(self, total: Tensor) -> float:
        if self.accelerator.num_processes > 1:
            total = self.accelerator.reduce(total, reduction="sum")
        lost, energy = total.tolist()
        return 1 - lost / energy


def _energies(target: Tensor, found: Tensor) -> Tensor:
    """Sums of squares of what is missing and of what should be there."""
    return torch.stack([(target - found).double().square().sum(), target.double().square().sum()])
