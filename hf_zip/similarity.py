"""How alike the weights of models are, role by role, and what that says of their initialisation."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from torch import Tensor
from transformers import PreTrainedModel

from hf_zip.adapters import Adapter
from hf_zip.groups import blocks, embedding_names
from hf_zip.sources import Source
from hf_zip.task_head import task_heads

Initialisation = Literal["shared", "different", "unclear"]

LINEAR_ROLES = ("query", "key", "value", "output", "mlp_in", "mlp_out")
ROLES = (*LINEAR_ROLES, "embeddings")
WEIGHTS = "weights"  # all of them, where no table tells roles apart
SHARED_FROM = 0.5
DIFFERENT_UP_TO = 0.1


@dataclass(frozen=True)
class PairSimilarity:
    """How alike two models' weights are.

    Args:
        first: Name of the one.
        second: Name of the other.
        cosines: For every role that the family has, the cosine in [-1, 1] between all its weights
            in the one and in the other, over all blocks; without a table, one over all weights but
            the task head's. Parameters with fewer than two dimensions are left out: at their
            initialisation they are alike in all models.
    """

    first: str
    second: str
    cosines: Mapping[str, float]

    @property
    def initialisation(self) -> Initialisation:
        """What the median over the linear roles says: see `initialisation`."""
        roles = (*LINEAR_ROLES, WEIGHTS)
        linear = [self.cosines[role] for role in roles if role in self.cosines]
        median = statistics.median(linear) if linear else (SHARED_FROM + DIFFERENT_UP_TO) / 2
        if median >= SHARED_FROM:
            return "shared"
        return "different" if median <= DIFFERENT_UP_TO else "unclear"


def similarities(sources: Sequence[Source], adapter: Adapter | None) -> tuple[PairSimilarity, ...]:
    """Returns how alike every pair of models is, in the order of the models.

    Args:
        sources: Models of the same shapes.
        adapter: Their family's table; nothing if there is none that covers their class.
    """
    roles = [
        _all_weights(source.model) if adapter is None else _weights(source.model, adapter)
        for source in sources
    ]
    return tuple(
        PairSimilarity(
            sources[i].name,
            sources[j].name,
            {role: _cosine(roles[i][role], roles[j][role]) for role in roles[i]},
        )
        for i, j in combinations(range(len(sources)), 2)
    )


def initialisation(pairs: Sequence[PairSimilarity]) -> Initialisation:
    """Tells whether models share their initialisation.

    Fine-tuned copies of one model keep weights that point the same way; trainings from different
    random numbers end in weights that are nearly orthogonal, whatever they learnt. So a pair shares
    its initialisation if the median over the linear roles of the cosine between their weights is at
    least 0.5, does not if it is at most 0.1, and is unclear in between, as after a very long
    fine-tuning. A permuted copy counts as different: it is alike only after matching.

    Args:
        pairs: Every pair of models.

    Returns:
        "different" if one pair is, "shared" if every pair is, else "unclear".
    """
    verdicts = [pair.initialisation for pair in pairs]
    if "different" in verdicts:
        return "different"
    return "unclear" if "unclear" in verdicts else "shared"


def _weights(model: PreTrainedModel, adapter: Adapter) -> dict[str, list[Tensor]]:
    """Returns the parameters of every role, in the model's order."""
    layers = blocks(model, adapter)
    names = {role: [f"{getattr(layer, role)}.weight" for layer in layers] for role in LINEAR_ROLES}
    names["embeddings"] = list(embedding_names(model, adapter))
    parameters = dict(model.named_parameters())
    found: dict[str, list[Tensor]] = {}
    for role, places in names.items():
        tensors = [parameters[place].detach() for place in places if place in parameters]
        wide = [tensor for tensor in tensors if tensor.dim() >= 2]
        if wide:
            found[role] = wide
    return found


def _all_weights(model: PreTrainedModel) -> dict[str, list[Tensor]]:
    heads = tuple(f"{head}." for head in task_heads(model))
    parameters = [
        parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.dim() >= 2 and not name.startswith(heads)
    ]
    return {WEIGHTS: parameters} if parameters else {}


def _cosine(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Returns the cosine between two lists of tensors, each as one vector; 0 where one is 0."""
    dot = norm_first = norm_second = 0.0
    for a, b in zip(first, second, strict=True):
        x, y = a.double().flatten(), b.double().flatten()
        dot += float(x @ y)
        norm_first += float(x @ x)
        norm_second += float(y @ y)
    if norm_first == 0 or norm_second == 0:
        return 0.0
    return dot / math.sqrt(norm_first * norm_second)
