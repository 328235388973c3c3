"""How alike the weights of models are, role by role, and what that says of their initialisation."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
        sign_conflicts: For the same roles the share, in [0, 1], of opposite signs among the weights
            that are zero in neither; one half for unrelated models. Roles without such weights are
            left out.
    """

    first: str
    second: str
    cosines: Mapping[str, float]
    sign_conflicts: Mapping[str, float] = field(default_factory=dict)

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
    return _pairs(sources, [_by_role(source.model, adapter) for source in sources])


def task_vector_similarities(
    sources: Sequence[Source], base: PreTrainedModel, adapter: Adapter | None
) -> tuple[PairSimilarity, ...]:
    """Returns how alike the changes are that every pair of models made to a base model.

    Roles whose weights have other shapes in the base model, such as embeddings of more tokens, are
    left out; without any other there are no pairs.

    Args:
        sources: Models of the same shapes.
        base: What they were fine-tuned from; its head may be another.
        adapter: Their family's table; nothing if there is none that covers their class.

    Source: Ilharco et al., Editing Models with Task Arithmetic, section 2,
        https://arxiv.org/abs/2212.04089; conflicts of signs: Yadav et al., TIES-Merging, section
        3, https://arxiv.org/abs/2306.01708, here before any trimming.
    """
    before = _by_role(base, adapter)
    after = [_by_role(source.model, adapter) for source in sources]
    roles = [
        role for role, own in after[0].items() if _shapes(own) == _shapes(before.get(role, []))
    ]
    if not roles:
        return ()
    changes = [
        {r: [x - y for x, y in zip(own[r], before[r], strict=True)] for r in roles} for own in after
    ]
    return _pairs(sources, changes)


def _pairs(
    sources: Sequence[Source], weights: Sequence[Mapping[str, Sequence[Tensor]]]
) -> tuple[PairSimilarity, ...]:
    found = []
    for (one, own), (other, theirs) in combinations(zip(sources, weights, strict=True), 2):
        compared = {role: _compare(own[role], theirs[role]) for role in own}
        conflicts = {role: share for role, (_, share) in compared.items() if share is not None}
        cosines = {role: cosine for role, (cosine, _) in compared.items()}
        found.append(PairSimilarity(one.name, other.name, cosines, conflicts))
    return tuple(found)


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


def _by_role(model: PreTrainedModel, adapter: Adapter | None) -> dict[str, list[Tensor]]:
    """Returns the parameters of every role, in the model's order."""
    return _all_weights(model) if adapter is None else _weights(model, adapter)


def _weights(model: PreTrainedModel, adapter: Adapter) -> dict[str, list[Tensor]]:
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


def _shapes(tensors: Sequence[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensors]


def _compare(first: Sequence[Tensor], second: Sequence[Tensor]) -> tuple[float, float | None]:
    """Returns cosine and sign conflict of two lists of tensors, each as one vector.

    The cosine is 0 where one is 0; without weights that are zero in neither there is no conflict.
    """
    dot = norm_first = norm_second = 0.0
    opposite = counted = 0
    for a, b in zip(first, second, strict=True):
        x, y = a.double().flatten(), b.double().flatten()
        dot += float(x @ y)
        norm_first += float(x @ x)
        norm_second += float(y @ y)
        signs = x.sign() * y.sign()
        opposite += int((signs < 0).sum())
        counted += int((signs != 0).sum())
    share = opposite / counted if counted else None
    if norm_first == 0 or norm_second == 0:
        return 0.0, share
    return dot / math.sqrt(norm_first * norm_second), share
