"""What the teachers' streams and tokens are like, before anything is fitted to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from hf_zip.collect import reduced
from hf_zip.groups import Tap
from hf_zip.refit.post_norm.basis import Plain
from hf_zip.refit.post_norm.running import Batch, embedded
from hf_zip.refit.survey import run_block
from hf_zip.refit.walk import Setting
from hf_zip.statistics.covariance import Covariance


@dataclass(frozen=True)
class Survey:
    """What was found.

    Args:
        moment: Mean of `z zᵀ` of all teachers' plain streams, side by side, over all real tokens
            and all normalisations.
        contexts: For each block the covariance of what all heads attend to; none if not asked for.
        num_rows: Number of real tokens of all processes.
    """

    moment: Float64[Tensor, "n n"]
    contexts: list[Float64[Tensor, "m m"]]
    num_rows: int


def survey(
    setting: Setting,
    batches: Sequence[Batch],
    embedding_norm: str,
    plains: Mapping[str, Plain],
    heads: bool,
) -> Survey:
    """Runs the teachers block by block, so that the activations of one block at a time are held.

    Args:
        setting: The teachers.
        batches: The inputs of this process.
        embedding_norm: The normalisation of the embeddings.
        plains: What makes the streams plain, by name of the normalisation.
        heads: Whether the contexts are asked for.
    """
    teachers, layers = setting.teachers, setting.layers
    count, device = len(teachers), setting.accelerator.device
    inner = teachers[0].get_submodule(layers[0].output).in_features
    sums = Covariance(len(plains[embedding_norm].gain), device)
    contexts = [Covariance(count * inner, device) for _ in layers if heads]
    for batch in setting.bar(batches, "survey"):
        streams = embedded(teachers, layers[0], batch)
        rows = torch.cat([stream[batch.real] for stream in streams], dim=1)
        sums.update(plains[embedding_norm](rows))
        for position, layer in enumerate(layers):
            norms = layer.attention_norm, layer.mlp_norm
            taps = [Tap(layer.output, "input"), *(Tap(norm, "output") for norm in norms)]
            streams, seen = run_block(teachers, layer.name, streams, taps, batch.call, batch.real)
            for norm, tap in zip(norms, taps[1:], strict=True):
                sums.update(plains[norm](torch.cat([record[tap] for record in seen], dim=1)))
            if heads:
                contexts[position].update(torch.cat([record[taps[0]] for record in seen], dim=1))
    mean = reduced(sums, setting.accelerator).mean()
    return Survey(
        moment=sums.covariance() + torch.outer(mean, mean),
        contexts=[reduced(found, setting.accelerator).covariance() for found in contexts],
        num_rows=sums.count // (2 * len(layers) + 1),
    )
