"""How alike the weights of models are, role by role, and what that says of their initialisation."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations

from torch import Tensor
from transformers import PreTrainedModel

from hf_zip.adapters import Adapter
from hf_zip.groups import blocks, embedding_names
from hf_zip.products import (
    DIFFERENT_UP_TO,
    SHARED_FROM,
    Initialisation,
    Pairs,
    Products,
    compared_share,
    products,
    total,
    verdict,
)
from hf_zip.sources import Source
from hf_zip.task_head import task_heads

LINEAR_ROLES = ("query", "key", "value", "output", "mlp_in", "mlp_out")
ROLES = (*LINEAR_ROLES, "embeddings")
WEIGHTS = "weights"  # all of them, where no table tells roles apart


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
        share: Share of these weights, in (0, 1], that all this was worked out from; below 1 these
            are estimates, as of large tensors only a part is compared, spread evenly over them.
    """

    first: str
    second: str
    cosines: Mapping[str, float]
    sign_conflicts: Mapping[str, float] = field(default_factory=dict)
    share: float = 1.0

    @property
    def initialisation(self) -> Initialisation:
        """What the median over the linear roles says: see `initialisation`."""
        roles = (*LINEAR_ROLES, WEIGHTS)
        linear = [self.cosines[role] for role in roles if role in self.cosines]
        median = statistics.median(linear) if linear else (SHARED_FROM + DIFFERENT_UP_TO) / 2
        return verdict(median)


def similarities(
    sources: Sequence[Source],
    adapter: Adapter | None,
    known: Mapping[str, Products] | None = None,
) -> tuple[PairSimilarity, ...]:
    """Returns how alike every pair of models is, in the order of the models.

    Args:
        sources: Models of the same shapes.
        adapter: Their family's table; nothing if there is none that covers their class.
        known: What `weight_products` found of them, where that is known.
    """
    found = weight_products(sources) if known is None else known
    count, roles = len(sources), _roles(sources[0].model, adapter)
    weights = {
        role: total(found[name].weights.first(count) for name in names)
        for role, names in roles.items()
    }
    share = compared_share(found[name] for name in chain.from_iterable(roles.values()))
    return _pairs(sources, weights, share)


def task_vector_similarities(
    sources: Sequence[Source],
    base: Mapping[str, Tensor],
    adapter: Adapter | None,
    known: Mapping[str, Products] | None = None,
) -> tuple[PairSimilarity, ...]:
    """Returns how alike the changes are that every pair of models made to a base model.

    Args:
        sources: Models of the same shapes.
        base: The parameters of what they were fine-tuned from, by the names that the models have
            for them; what it lacks is left out.
        adapter: Their family's table; nothing if there is none that covers their class.
        known: What `weight_products` found of them, where that is known.

    Source: Ilharco et al., Editing Models with Task Arithmetic, section 2,
        https://arxiv.org/abs/2212.04089; conflicts of signs: Yadav et al., TIES-Merging, section
        3, https://arxiv.org/abs/2306.01708, here before any trimming.
    """
    found = weight_products(sources, base) if known is None else known
    roles = {}
    for role, names in _roles(sources[0].model, adapter).items():
        of_base = [found[name] for name in names if found[name].changes is not None]
        if of_base:
            roles[role] = of_base
    share = compared_share(chain.from_iterable(roles.values()))
    changes = {role: total(x.changes for x in own if x.changes) for role, own in roles.items()}
    return _pairs(sources, changes, share) if changes else ()


def weight_products(
    sources: Sequence[Source], base: Mapping[str, Tensor] | None = None
) -> dict[str, Products]:
    """Returns what is known of the parameters of every two models, task heads left out.

    Args:
        sources: Models of the same shapes.
        base: The parameters of what they were fine-tuned from, by the names that the models have
            for them.
    """
    models = [dict(source.model.named_parameters()) for source in sources]
    given = base or {}
    shared = {name: x for name, x in given.items() if x.shape == models[0][name].shape}
    alike = [
        name
        for name, tensor in models[0].items()
        if all(own[name].shape == tensor.shape for own in models[1:])
    ]
    return products(models, shared, alike)


def _pairs(
    sources: Sequence[Source], roles: Mapping[str, Pairs], share: float
) -> tuple[PairSimilarity, ...]:
    found = []
    for first, second in combinations(range(len(sources)), 2):
        shares = {role: pairs.conflict(first, second) for role, pairs in roles.items()}
        found.append(
            PairSimilarity(
                sources[first].name,
                sources[second].name,
                {role: pairs.cosine(first, second) for role, pairs in roles.items()},
                {role: found for role, found in shares.items() if found is not None},
                share,
            )
        )
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


def _roles(model: PreTrainedModel, adapter: Adapter | None) -> dict[str, list[str]]:
    """Returns the names of the matrices of every role; roles without any are left out."""
    wide = {name for name, parameter in model.named_parameters() if parameter.dim() >= 2}
    if adapter is None:
        heads = tuple(f"{head}." for head in task_heads(model))
        own = [n for n, _ in model.named_parameters() if n in wide and not n.startswith(heads)]
        return {WEIGHTS: own} if own else {}
    layers = blocks(model, adapter)
    names = {role: [f"{getattr(layer, role)}.weight" for layer in layers] for role in LINEAR_ROLES}
    names["embeddings"] = list(embedding_names(model, adapter))
    found = {role: [name for name in places if name in wide] for role, places in names.items()}
    return {role: places for role, places in found.items() if places}
