"""What can go wrong with a merge, found before the work."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from hf_zip.base_model import base_state, compare_base, compare_own_bases
from hf_zip.checkpoint import check_finite
from hf_zip.compatibility import (
    Finding,
    both,
    compare_architectures,
    compare_configs,
    compare_processors,
    has_tokenizer,
    refused,
)
from hf_zip.errors import HfZipError
from hf_zip.initialisations import suggestion, unlike_initialisations
from hf_zip.licenses import license_warnings, stated_licenses
from hf_zip.products import Products
from hf_zip.similarity import (
    ROLES,
    WEIGHTS,
    Initialisation,
    PairSimilarity,
    initialisation,
    similarities,
    task_vector_similarities,
    weight_products,
)
from hf_zip.sources import Source
from hf_zip.support import Support, support
from hf_zip.task_head import rows_of_labels, task_heads
from hf_zip.tasks import Task, labels_of, says_nothing
from hf_zip.tokenization import check_tokenizer, compare_tokenizers


@dataclass(frozen=True)
class Preflight:
    """What is known of a merge before the work.

    Args:
        findings: What was noticed, warnings first.
        similarities: How alike the weights of every pair of models are.
        initialisation: Whether the models share one; `similarity.initialisation` says how it is
            told.
        suggestion: Which method fits, in words.
        task_vectors: How alike what every pair changed of the base model is; nothing without one.
    """

    findings: tuple[Finding, ...]
    similarities: tuple[PairSimilarity, ...]
    initialisation: Initialisation
    suggestion: str
    task_vectors: tuple[PairSimilarity, ...] = ()


def preflight(
    sources: Sequence[Source],
    tasks: Sequence[Task],
    *,
    needs_shared_init: bool = False,
    method: str = "",
    force: bool = False,
    base: Source | None = None,
    own_bases: Sequence[Source | None] = (),
    any_base: bool = False,
) -> Preflight:
    """Returns what is known of a merge before the work, or refuses it with all its problems.

    Args:
        sources: The models.
        tasks: Their tasks.
        needs_shared_init: The method is for models that share their initialisation.
        method: Name of the method, for messages.
        force: Turn the problems that somebody may know better about into warnings.
        base: The model that the others were fine-tuned from, where it is known.
        own_bases: What each model was fine-tuned from, where that is another; empty if none is.
        any_base: It may be another one of their shape, so that its weights are not compared.

    Raises:
        HfZipError: The models do not fit together; the message lists everything that was found.
    """
    few = _few(sources, any(own_bases))
    findings = [*few, *_tasks(sources, tasks), *_types(sources)]
    findings += [finding for source in sources for finding in check_tokenizer(source)]
    first, alike = sources[0], [s for s in sources[1:] if _type(s) == _type(sources[0])]
    known = support(first.model)
    findings += _without_table(first, known)
    for other in alike:
        findings += compare_architectures(first, other)
        findings += compare_configs(first, other, force)
        findings += compare_processors(first, other, force)
        if has_tokenizer(first) and has_tokenizer(other):
            findings += compare_tokenizers(first, other, force)
        if known.adapter is None:
            findings += _averaged_labels(first, other, force)
    warnings = license_warnings(stated_licenses(sources))
    findings += [Finding("warning", "license", text) for text in warnings]
    pairs: tuple[PairSimilarity, ...] = ()
    changes: tuple[PairSimilarity, ...] = ()
    if not any(finding.code in ("type", "class", "shape") for finding in findings):
        heads = task_heads(first.model)
        before = {} if base is None else base_state(first.model, base.model, heads)
        products = weight_products(sources, before)
        _check_finite(sources, base, products)
        pairs = similarities(sources, known.adapter, products)
        findings += _identical(sources)
        if needs_shared_init:
            findings += unlike_initialisations(pairs, known.adapter, method or "this method", force)
        compared = list(compare_own_bases(sources, own_bases, heads, force))
        if base is not None:
            bases = own_bases or [None] * len(sources)
            siblings = [i for i, own in enumerate(bases) if own is None and not any_base]
            found = compare_base(sources, base, heads, force, products, siblings)
            compared = [*found, *compared]
        findings += compared
        refused_base = any(finding.level == "error" for finding in compared)
        if base is not None and not any_base and not refused_base:
            changes = task_vector_similarities(sources, before, known.adapter, products)
            others = {s.name for s, own in zip(sources, own_bases, strict=False) if own}
            changes = tuple(x for x in changes if others.isdisjoint((x.first, x.second)))

    errors = [finding.message for finding in findings if finding.level == "error"]
    if errors:
        listed = "".join(f"\n- {message}" for message in errors)
        raise HfZipError(
            f"these models cannot be merged, for {len(errors)} "
            f"reason{'s' if len(errors) > 1 else ''}:{listed}"
        )
    verdict = initialisation(pairs)
    return Preflight(
        findings=tuple(sorted(findings, key=lambda finding: finding.level != "warning")),
        similarities=pairs,
        initialisation=verdict,
        suggestion=suggestion(verdict, known.adapter),
        task_vectors=changes,
    )


def render(found: Preflight) -> str:
    """Returns a preflight as a few lines of plain text for a terminal."""
    lines = [f"{finding.level}: {finding.message}" for finding in found.findings]
    if found.similarities:
        names = [f"{pair.first} / {pair.second}" for pair in found.similarities]
        width = max(len("weight cosine"), *map(len, names))
        roles = (WEIGHTS,) if WEIGHTS in found.similarities[0].cosines else ROLES
        lines.append("  ".join(["weight cosine".ljust(width), *(x.rjust(10) for x in roles)]))
        for name, pair in zip(names, found.similarities, strict=True):
            cells = [f"{pair.cosines[x]:.3f}" if x in pair.cosines else "-" for x in roles]
            lines.append("  ".join([name.ljust(width), *(cell.rjust(10) for cell in cells)]))
        share = min(pair.share for pair in found.similarities)
        if share < 1:
            lines.append(f"estimated from {100 * share:.0f} % of these weights, spread evenly")
        lines.append(f"initialisation: {found.initialisation}")
        lines.append(f"suggestion: {found.suggestion}")
    return "\n".join(lines)


def _few(sources: Sequence[Source], brought: bool) -> Iterator[Finding]:
    """Too few models; one alone is enough where it is brought to another base."""
    if not sources:
        raise HfZipError("there are no models to merge; name at least two under 'models'")
    if len(sources) == 1 and not brought:
        yield Finding(
            "warning",
            "single",
            f"{sources[0].reference!r} is the only model, so there is nothing to merge it with; "
            "name at least two under 'models'",
        )


def _tasks(sources: Sequence[Source], tasks: Sequence[Task]) -> Iterator[Finding]:
    for task in tasks:
        names = " and ".join(sources[member].name for member in task.members)
        what = f"{len(task.labels)} labels" if task.labels else task.kind
        yield Finding("info", "task", f"task {task.name!r}: {what} of {names}")
        own = labels_of(sources[task.members[0]].model.config)
        if task.labels != own and task.labels and says_nothing(own):
            yield Finding(
                "warning",
                "labels",
                f"the labels of task {task.name!r} say nothing and become {task.labels[0]!r} and "
                f"so on; name them under id2label in the config of {names}",
            )


def _types(sources: Sequence[Source]) -> Iterator[Finding]:
    for other in sources[1:]:
        if _type(other) != _type(sources[0]):
            yield Finding(
                "error",
                "type",
                f"{both(sources[0], other)} are of different types, {_type(sources[0])} and "
                f"{_type(other)}; only models of one type can be merged",
            )


def _without_table(source: Source, known: Support) -> Iterator[Finding]:
    """What a merge without a table takes for the task head."""
    if known.adapter is not None:
        return
    name, heads = type(source.model).__name__, task_heads(source.model)
    what = (
        f"{', '.join(heads)} is its task head, and all else is shared"
        if heads
        else "no rows of it are known to be labels, and all of it is shared"
    )
    yield Finding("info", "table", f"no table covers {name}; {what}")


def _averaged_labels(first: Source, other: Source, force: bool) -> Iterator[Finding]:
    """Labels that differ where a layer has a row per label, but is not known to be a task head."""
    if task_heads(first.model) or first.model.base_model is first.model:
        return
    rows, (a, b) = rows_of_labels(first.model), (first.model.config, other.model.config)
    if rows and labels_of(a) != labels_of(b) and not says_nothing((*labels_of(a), *labels_of(b))):
        yield refused(
            "labels",
            f"{both(first, other)} have different labels, and {', '.join(rows)} of "
            f"{type(first.model).__name__} has a row for each, but is not known to be a task head "
            "whose rows can be stacked",
            "Merge models with the same labels in the same order",
            "these rows are merged one by one, whatever they mean",
            force,
        )


def _check_finite(
    sources: Sequence[Source], base: Source | None, known: Mapping[str, Products]
) -> None:
    """Checks models whose files were not read before."""
    if all(found.weights.dots.isfinite().all() for found in known.values()):
        return
    for source in (*sources, *(() if base is None else (base,))):
        check_finite(source.model, source.reference)


def _identical(sources: Sequence[Source]) -> Iterator[Finding]:
    for position, other in enumerate(sources):
        for first in sources[:position]:
            pairs = zip(first.model.parameters(), other.model.parameters(), strict=True)
            # Small ones first, which mostly tell: the others may have to be read for it.
            if all(torch.equal(x, y) for x, y in sorted(pairs, key=lambda pair: pair[0].numel())):
                yield Finding("info", "identical", f"{both(first, other)} have the same weights")


def _type(source: Source) -> str:
    return str(source.model.config.model_type)
