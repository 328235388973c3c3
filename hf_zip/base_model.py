"""The model that others were fine-tuned from: its parameters under their names, and its checks."""

import math
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_zip.compatibility import Finding, compare_configs, has_tokenizer, refused
from hf_zip.errors import first_few
from hf_zip.products import Products, total
from hf_zip.similarity import verdict, weight_products
from hf_zip.sources import Source
from hf_zip.tokenization import compare_tokenizers

# Of a model's parameters, at least so many should be in its base for it to be one.
_LEAST_SHARED = 0.5


def base_state(
    model: PreTrainedModel, base: PreTrainedModel, heads: Sequence[str]
) -> dict[str, Tensor]:
    """Returns the parameters of a base model under the names that a fine-tuned one has for them.

    The base may have another head, or none, or be the whole of which the model is one encoder: what
    lies below the base models is found by its place there, everything else by its full name.

    Args:
        model: A model that was fine-tuned.
        base: The model that it was fine-tuned from; the tensors are its own.
        heads: Linear layers that make a task head; they are left out.
    """
    own, theirs = _prefixes(model), _prefixes(base)
    known = {name: p.detach() for name, p in base.named_parameters(remove_duplicate=False)}
    left_out = tuple(f"{head}." for head in heads)
    found = {}
    for name, _ in model.named_parameters():
        if name.startswith(left_out):
            continue
        place = _place(name, own, theirs)
        for candidate in (place, name):
            if candidate in known:
                found[name] = known[candidate]
                break
    return found


def compare_own_bases(
    sources: Sequence[Source],
    own_bases: Sequence[Source | None],
    heads: Sequence[str],
    force: bool,
) -> Iterator[Finding]:
    """Returns what is wrong, or worth knowing, between models and the bases of their own.

    Args:
        sources: The models, all of one class.
        own_bases: The bases of models' own; empty if none has any.
        heads: See `compare_base`; so is the next.
        force: See `refused`.
    """
    for source, own in zip(sources, own_bases, strict=False):
        if own is not None:
            yield from compare_base([source], own, heads, force)


def compare_base(
    sources: Sequence[Source],
    base: Source,
    heads: Sequence[str],
    force: bool,
    known: Mapping[str, Products] | None = None,
    siblings: Sequence[int] | None = None,
) -> Iterator[Finding]:
    """Returns what is wrong, or worth knowing, between models and their base.

    Args:
        sources: The models, all of one class.
        base: What they should have been fine-tuned from.
        heads: Linear layers that make a task head.
        force: See `refused`.
        known: What `weight_products` found of the models and the base, where that is known.
        siblings: Positions of the models whose weights should be alike to the base's; left out,
            all of them.
    """
    first = sources[0]
    own, theirs = (_prefixes(source.model) for source in (first, base))
    if own.keys().isdisjoint(theirs):
        yield Finding(
            "error",
            "base",
            f"{_names(base)} is of type {base.model.config.model_type}, but {first.reference!r} is "
            f"of type {first.model.config.model_type}; give the model that it was fine-tuned from",
        )
        return
    found = base_state(first.model, base.model, heads)
    misfits = list(_misfits(first, base, heads, found))
    yield from misfits
    if any(finding.level == "error" for finding in misfits):
        return
    if type(first.model.config) is type(base.model.config):
        yield from compare_configs(first, base, force)
    if has_tokenizer(first) and has_tokenizer(base):
        tokens = compare_tokenizers(first, base, force)
        # How either cuts texts off, or writes them apart, does not touch its weights.
        yield from (finding for finding in tokens if finding.code == "vocabulary")
    products = weight_products(sources, found) if known is None else known
    for position in range(len(sources)) if siblings is None else siblings:
        yield from _unlike(sources, position, base, heads, force, products)


def _misfits(
    first: Source, base: Source, heads: Sequence[str], found: Mapping[str, Tensor]
) -> Iterator[Finding]:
    """What of the first model's parameters the base lacks or has in another shape."""
    left_out = tuple(f"{head}." for head in heads)
    shared = {
        name: tuple(parameter.shape)
        for name, parameter in first.model.named_parameters()
        if not name.startswith(left_out)
    }
    absent = [name for name in shared if name not in found]
    if sum(math.prod(shared[n]) for n in absent) > (1 - _LEAST_SHARED) * sum(
        math.prod(shape) for shape in shared.values()
    ):
        yield Finding(
            "error",
            "base",
            f"{_names(base)} has {len(found)} of the {len(shared)} parameters of "
            f"{first.reference!r} outside its head ({first_few(absent, 3)} are absent); give the "
            "model that it was fine-tuned from",
        )
        return
    differing = [name for name, tensor in found.items() if tuple(tensor.shape) != shared[name]]
    if differing:
        shapes = (f"{n} {tuple(found[n].shape)} and {shared[n]}" for n in differing[:3])
        yield Finding(
            "error",
            "base",
            f"{_names(base)} and {first.reference!r} differ in {len(differing)} parameters outside "
            f"their heads: {', '.join(shapes)}; give the model that it was fine-tuned from",
        )
        return
    if absent:
        yield Finding(
            "info",
            "base",
            f"{_names(base)} lacks {first_few(absent, 3, str)}, which no task vector has: they are "
            "averaged, or kept as they are by methods that keep something per task",
        )


def _unlike(
    sources: Sequence[Source],
    position: int,
    base: Source,
    heads: Sequence[str],
    force: bool,
    products: Mapping[str, Products],
) -> Iterator[Finding]:
    """Whether a model's weights look as if they came from the base.

    Embeddings are not looked at: those of words may stand in another order.
    """
    source = sources[position]
    found = base_state(source.model, base.model, heads)
    parameters = dict(source.model.named_parameters())
    modules = source.model.named_modules()
    tables = {f"{name}.weight" for name, module in modules if isinstance(module, nn.Embedding)}
    names = [name for name, tensor in found.items() if tensor.dim() >= 2 and name not in tables]
    alike = 1.0
    if names:
        alike = total(products[name].weights for name in names).cosine(position, len(sources))
    told = verdict(alike)
    if told == "different":
        yield refused(
            "base",
            f"the weights of {_names(base)} and of {source.reference!r} are unrelated (cosine "
            f"{alike:.2f}), so their difference is no task vector",
            "Give the model that it was fine-tuned from",
            "their difference is taken for one",
            force,
        )
    elif told == "unclear":
        yield Finding(
            "warning",
            "base",
            f"the weights of {_names(base)} and of {source.reference!r} are only somewhat alike "
            f"(cosine {alike:.2f}); check that it was fine-tuned from there",
        )
    elif not any(_changes(products[name], position) for name in found) and all(
        bool((parameters[name] == tensor).all()) for name, tensor in found.items()
    ):
        yield Finding(
            "warning",
            "base",
            f"{source.reference!r} has the weights of {_names(base)}, so its task vector is zero",
        )


def _changes(found: Products, position: int) -> bool:
    """Whether a model has another number than its base where a parameter was looked at."""
    return found.changes is not None and bool(found.changes.counted[position, position])


def _prefixes(model: PreTrainedModel) -> dict[str, str]:
    """What comes before the names of a model's trunk, by its type, and of its encoders."""
    prefix = model.base_model_prefix
    found = {str(model.config.model_type): f"{prefix}." if hasattr(model, prefix) else ""}
    for name, child in model.named_children():
        if isinstance(child, PreTrainedModel):
            found.setdefault(str(child.config.model_type), f"{name}.")
    return found


def _place(name: str, own: Mapping[str, str], theirs: Mapping[str, str]) -> str | None:
    """The name in the base of what lies below the trunk or an encoder; nothing outside of them."""
    inside = [kind for kind, prefix in own.items() if kind in theirs and name.startswith(prefix)]
    if not inside:
        return None
    kind = max(inside, key=lambda kind: len(own[kind]))
    return theirs[kind] + name.removeprefix(own[kind])


def _names(base: Source) -> str:
    return f"base_model {base.reference!r}"
