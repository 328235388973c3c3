"""The attention of one merged post-norm block: heads read, output fitted to what is added."""

from dataclasses import dataclass

import torch

from hf_zip.groups import Block, Tap
from hf_zip.refit.attention import Heads, Keep, attend, set_attention
from hf_zip.refit.moments import Moments, RegressionMoments
from hf_zip.refit.post_norm.carry import Carry, fit_carry
from hf_zip.refit.post_norm.weighted import ScaledMoments
from hf_zip.refit.post_norm.work import PostNormWork, centred, scales
from hf_zip.refit.reading import SELECTION_ROWS, written
from hf_zip.refit.work import set_linear
from hf_zip.statistics.covariance import Covariance


@dataclass(frozen=True)
class Reading:
    """What the teachers' blocks compute, and how it depends on the merged stream.

    Args:
        projections: Moments of the merged stream and of all queries, then keys, then values.
        carry: Maps what the teachers' attentions write to the merged stream.
        activity: Covariance of all teachers' MLP units; nothing where none are to be chosen.
    """

    projections: Moments
    carry: Carry
    activity: Covariance | None


def read_teachers(work: PostNormWork, layer: Block, norm: str, choosing: bool) -> Reading:
    """Moves the teachers' streams past their block; holds what they write and are in between.

    Args:
        work: The models and streams.
        layer: Names of the block's modules.
        norm: The normalisation before the block.
        choosing: Whether some of the teachers' MLP units are to be chosen.
    """
    count, device = len(work.teachers), work.accelerator.device
    attention, mlp = (
        work.teachers[0].get_submodule(name) for name in (layer.output, layer.mlp_out)
    )
    places = [Tap(name, "output") for name in (layer.query, layer.key, layer.value)]
    kept = {
        "attention": Tap(layer.output, "output"),
        "middle": Tap(layer.mlp_in, "input"),
        "mlp": Tap(layer.mlp_out, "output"),
    }
    units = Tap(layer.mlp_out, "input")
    projections = RegressionMoments(work.shape.width, 3 * count * attention.in_features, device)
    carried = RegressionMoments(work.matrix.shape[1], work.shape.width, device)
    activity = Covariance(count * mlp.in_features, device) if choosing else None
    importance = written(work, layer, work.matrix / work.basis.plains[layer.mlp_norm].gain)
    stride = max(1, work.num_rows // SELECTION_ROWS)
    for batch in range(work.num_batches):
        merged = work.rows("merged", batch)
        carried.update(work.basis.plains[norm](work.rows("teachers", batch)), merged)
        seen = work.run_teachers(layer, batch, [*places, *kept.values(), units])
        wanted = [record[place] for place in places for record in seen]
        projections.update(merged, torch.cat(wanted, dim=1))
        for name, tap in kept.items():
            work.held[name, batch] = torch.cat([record[tap] for record in seen], dim=1)
        if activity is not None:
            active = torch.cat([record[units][::stride] for record in seen], dim=1)
            activity.update(active * importance)
    return Reading(
        projections=work.reduced(projections).moments(),
        carry=fit_carry(work, work.reduced(carried).moments(), norm),
        activity=None if activity is None else work.reduced(activity),
    )


def fit_attention(work: PostNormWork, layer: Block, heads: Heads, carry: Carry, keep: Keep) -> None:
    """Sets the attention of a block.

    What it writes is fitted to what the teachers' attentions write, mapped as the merged stream
    carries theirs. The residual connection passes on the merged stream as it is, which attention,
    a mixture of other tokens, could not move to where a fixed map would have it.

    Args:
        work: The models and streams; `attention` is given up.
        layer: Names of the block's modules.
        heads: What the heads read.
        carry: Maps what the teachers' attentions write to the merged stream.
        keep: Chooses among the heads.
    """
    student = work.student
    eps = student.get_submodule(layer.attention_norm).eps
    sums = ScaledMoments(len(heads.value), work.shape.width, work.accelerator.device)
    for batch in range(work.num_batches):
        merged = work.rows("merged", batch)
        added = carry(work.held.pop("attention", batch))
        real = work.batches[batch].real
        # Padding is not attended to.
        contexts = attend(work.held["merged", batch], heads, mask=real[:, None, None, :])
        sums.update(contexts[real], centred(added), scales(merged + added, eps))
    moments = work.reduced(sums).moments()
    chosen, kept = keep(moments)
    output, output_bias = moments.mapped(kept).fit(work.penalty)
    set_attention(student, layer, heads, chosen, kept @ heads.value)
    set_linear(student.get_submodule(layer.output), output, output_bias)
