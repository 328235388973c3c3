"""Hidden layers between stream and task head: some of all teachers' units, fitted."""

import torch
from jaxtyping import Float64
from torch import Tensor

from hf_zip.adapters import Adapter
from hf_zip.collect import observe
from hf_zip.groups import MergeGroup, Tap, base_name, merge_groups
from hf_zip.matching.selection import select_features
from hf_zip.refit.cross_validation import choose_penalty
from hf_zip.refit.moments import RegressionMoments
from hf_zip.refit.post_norm.work import PostNormWork
from hf_zip.refit.readout import replayed
from hf_zip.refit.ridge import regress
from hf_zip.refit.work import set_linear
from hf_zip.statistics.covariance import Covariance

# Ridges of the fit to pooled tokens to choose from, beside that of task heads.
STRONGER = (1, 10, 100, 1000)


def fit_poolers(work: PostNormWork, adapter: Adapter, penalty: float) -> None:
    """Sets the hidden layers before the task head.

    There is one pooled token per input, which are too few for a fit of their own: all tokens say
    how the teachers' streams follow from the merged one, and the pooled ones what that lacks, as
    far as they can tell.

    Args:
        work: The models, with their streams after the last block.
        adapter: Their family's table.
        penalty: Least ridge of the fit to the pooled tokens.
    """
    groups = [g for g in merge_groups(work.student, adapter) if g.role == "pooler"]
    if not groups:
        return
    sums = RegressionMoments(work.shape.width, work.matrix.shape[1], work.accelerator.device)
    for batch in range(work.num_batches):
        sums.update(work.rows("merged", batch), work.rows("teachers", batch))
    decode, shift = work.reduced(sums).moments().fit(work.penalty)
    layers = base_name(work.student, adapter, adapter.layers)
    for group in groups:
        _fit_pooler(work, group, layers, decode, shift, penalty)


def _fit_pooler(
    work: PostNormWork,
    group: MergeGroup,
    layers: str,
    decode: Float64[Tensor, "n width"],
    shift: Float64[Tensor, " n"],
    penalty: float,
) -> None:
    """Sets one hidden layer.

    Args:
        work: The models.
        group: Where it is, and what reads it.
        layers: Full name of the list of blocks.
        decode: Maps the merged stream to those of all teachers.
        shift: What is to be added.
        penalty: Least ridge of the fit.
    """
    dense = group.taps[0].module
    reader = group.readers[0].parameter.removesuffix(".weight")
    before, inside, after = Tap(dense, "input"), Tap(dense, "output"), Tap(reader, "input")
    count, device = len(work.teachers), work.accelerator.device
    own = [teacher.get_submodule(dense) for teacher in work.teachers]
    importance = torch.cat(
        [teacher.get_submodule(reader).weight.norm(dim=0) for teacher in work.teachers]
    )
    weight = torch.block_diag(*(linear.weight.double() for linear in own)).to(decode)
    prior = weight @ decode
    prior_bias = weight @ shift + torch.cat([linear.bias for linear in own]).to(shift)

    lacking = Covariance(work.shape.width + len(prior), device)
    activity = Covariance(len(prior), device)
    for batch, given in enumerate(work.batches):
        streams = work.held["teachers", batch].chunk(count, dim=-1)
        seen = []
        for teacher, stream in zip(work.teachers, streams, strict=True):
            with replayed(teacher, layers, stream):
                seen.append(observe(teacher, (inside, after), given.inputs))
        with replayed(work.student, layers, work.held["merged", batch]):
            merged = observe(work.student, (before,), given.inputs)[before]
        expected = merged @ prior.T.to(merged) + prior_bias.to(merged)
        lack = torch.cat([record[inside] for record in seen], dim=1) - expected
        lacking.update(torch.cat([merged, lack], dim=1))
        activity.update(torch.cat([record[after] for record in seen], dim=1) * importance)
    found = work.reduced(lacking)
    if penalty > 0:
        penalty = choose_penalty(found, work.shape.width, [penalty * x for x in STRONGER])
    change, change_bias = regress(found, work.shape.width, penalty)
    size = work.student.get_submodule(dense).out_features
    units = (
        select_features(work.reduced(activity).covariance(), size).sort().values.to(change.device)
    )
    set_linear(
        work.student.get_submodule(dense),
        (prior + change)[units],
        (prior_bias + change_bias)[units],
    )
