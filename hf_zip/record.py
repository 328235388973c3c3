"""What is written beside a merged model: resolved recipe, report, card, pictures."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_zip.card import render_card
from hf_zip.cost import stored_bytes
from hf_zip.depth import Assembled
from hf_zip.drawing import PICTURES, pictures
from hf_zip.learned import stored
from hf_zip.method import MergeMethod
from hf_zip.outcome import Merged
from hf_zip.page import PAGE_NAME, render_page
from hf_zip.plain import plain
from hf_zip.preparation import Prepared
from hf_zip.recipe import Recipe, Unmerge
from hf_zip.redact import published
from hf_zip.report import REPORT_NAME, Report, read, versions
from hf_zip.report_records import (
    MethodRecord,
    OwnBaseRecord,
    SimilarityRecord,
    SourceRecord,
    TaskRecord,
)
from hf_zip.save import MARKER, write_file
from hf_zip.sources import Source, pinned
from hf_zip.tasks import Task
from hf_zip.varying import as_given


def resolved_recipe(
    recipe: Recipe, prepared: Prepared, options: Any, depth: int | None, unmerge: Unmerge
) -> Recipe:
    """Returns the recipe with every default, task and revision written out."""
    names = _only_task(prepared.tasks)
    return replace(
        recipe,
        models=tuple(
            replace(
                spec,
                model=_pinned(spec.model, source),
                base_model=_pinned(spec.base_model, own) if spec.base_model and own else None,
                task=names.get(i),
                parameters=as_given(chosen, spec.parameters),
            )
            for i, (spec, source, chosen, own) in enumerate(
                zip(
                    recipe.models,
                    prepared.sources,
                    prepared.inputs.model_options,
                    prepared.own_bases or [None] * len(recipe.models),
                    strict=True,
                )
            )
        ),
        base_model=_pinned(recipe.base_model, prepared.base)
        if recipe.base_model and prepared.base
        else None,
        parameters=as_given(options, recipe.parameters),
        stop_at=depth,
        budget=None,
        validation=(),
        unmerge=recipe.unmerge if depth is None and not prepared.apart else unmerge,
    )


def _only_task(tasks: Sequence[Task]) -> dict[int, str | None]:
    """The task of each source by position; nothing for one that has several, as merges may."""
    names: dict[int, str | None] = {}
    for task in tasks:
        for position in task.members:
            names[position] = None if position in names else task.name
    return names


def config_record(
    method: MergeMethod, options: Any, recipe: Recipe, prepared: Prepared
) -> dict[str, Any]:
    """Returns what the config of a merge keeps of how it was made, as plain values.

    Args:
        method: The merge method.
        options: Its options.
        recipe: What was asked for.
        prepared: The sources.
    """
    return {
        "merge_method": method.name,
        "parameters": plain(as_given(options, recipe.parameters)),
        "sources": plain(prepared.family),
    }


def make_report(
    assembled: Assembled,
    recipe: Recipe,
    prepared: Prepared,
    method: MergeMethod,
    merged: Merged,
    seconds: float,
) -> Report:
    """Returns the report of a merge, but for what was measured.

    Args:
        assembled: The merged model and its depth.
        recipe: The resolved recipe.
        prepared: The sources and what was found about them.
        method: The merge method.
        merged: Its result.
        seconds: How long the merge took.
    """
    processor = prepared.sources[0].processor
    verdict = prepared.findings.initialisation
    return Report(
        architecture=type(assembled.model).__name__,
        recipe=recipe.to_dict(),
        sources=tuple(
            SourceRecord.of(replace(source, task=spec.task))
            for source, spec in zip(prepared.sources, recipe.models, strict=True)
        ),
        base=SourceRecord.of(prepared.base) if prepared.base else None,
        own_bases=tuple(
            OwnBaseRecord(source.name, SourceRecord.of(own))
            for source, own in zip(prepared.sources, prepared.own_bases, strict=False)
            if own is not None
        ),
        tasks=tuple(TaskRecord.of(task) for task in prepared.tasks),
        method=MethodRecord(method.name, method.title, method.reference),
        versions=versions(),
        seconds=seconds,
        num_processes=prepared.inputs.runtime.accelerator.num_processes,
        dtype=recipe.dtype,
        processor=type(processor).__name__ if processor is not None else None,
        shared_init={"shared": True, "different": False}.get(verdict),
        similarities=(
            *(SimilarityRecord.of(x, "weights") for x in prepared.findings.similarities),
            *(SimilarityRecord.of(x, "task vectors") for x in prepared.findings.task_vectors),
        ),
        findings=tuple(finding.message for finding in prepared.findings.findings),
        matching=merged.provenance.get("matched_correlation", {}),
        explained={**merged.provenance.get("explained", {}), **assembled.explained},
        coefficients=merged.provenance.get("coefficients", {}),
        trainings=merged.provenance.get("trainings", ()),
        barriers={
            prepared.sources[position].name: barrier
            for position, barrier in merged.provenance.get("barriers", {}).items()
        },
        depths=tuple(asdict(depth) for depth in assembled.curve),
        validation=assembled.validation,
        family=prepared.family,
        calibration=getattr(prepared.inputs.runtime.calibration, "description", None),
        own_calibration={
            source.name: getattr(feed.inputs, "description", {})
            for source, feed in zip(prepared.sources, prepared.inputs.runtime.own, strict=False)
            if feed is not None
        },
        sizes=_sizes(assembled.model, prepared.sources, recipe) if method.per_task else {},
    )


def _sizes(model: PreTrainedModel, sources: Sequence[Source], recipe: Recipe) -> dict[str, int]:
    """The bytes of a merge and of its sources, in the precision of the merge."""
    dtype = getattr(torch, recipe.dtype)
    together = [tensor for source in sources for tensor in stored(source.model).values()]
    return {
        "merge": stored_bytes(stored(model).values(), dtype),
        "sources": stored_bytes(together, dtype),
    }


def early_pictures(
    assembled: Assembled, recipe: Recipe, prepared: Prepared, method: MergeMethod, merged: Merged
) -> dict[str, bytes]:
    """Returns the pictures of a merge of which all is known but its sources' digests.

    Args:
        assembled: See `make_report`, as for the others.
        recipe: The recipe, which need not be resolved.
        prepared: The sources.
        method: The merge method.
        merged: Its result.
    """
    return pictures(make_report(assembled, recipe, prepared, method, merged, 0.0))


def files(
    recipe: Recipe, report: Report, drawn: Mapping[str, bytes] | None = None
) -> dict[str, str | bytes]:
    """Returns the files that stand beside a merged model: texts, and pictures if they can be drawn.

    Args:
        recipe: The resolved recipe.
        report: What is known about the merge.
        drawn: Its pictures, where they were drawn before.
    """
    drawn = pictures(report) if drawn is None else drawn
    return {**_texts(recipe, report, None, None, drawn), **drawn}


def published_texts(
    report: Report, repo_id: str, revision: str | None = None, beside: Collection[str] = ()
) -> dict[str, str]:
    """Returns the texts beside a merged model as they may be published in a repository.

    Args:
        report: What is known about the merge; its local paths are reduced to their last parts.
        repo_id: The repository that the card's usage code loads from.
        revision: Its branch; left out, the main one.
        beside: The other files; the card shows the pictures among them.
    """
    public = published(report)
    return _texts(Recipe.from_dict(public.recipe), public, repo_id, revision, beside)


def refresh(folder: Path, recipe: Recipe, report: Report) -> None:
    """Writes the files beside a merged model again, each all at once; its page if there is one."""
    _write(folder, files(recipe, report))
    if (folder / PAGE_NAME).is_file():
        write_file(folder / PAGE_NAME, render_page(report))


def refresh_card(folder: Path) -> None:
    """Writes the card of a merge and the pictures in it again, from the report in its folder.

    Raises:
        HfZipError: The folder holds no report of this version.
    """
    report = read(folder)
    drawn = pictures(report)
    _write(folder, {"README.md": render_card(report, pictures=drawn), **drawn})


def _texts(
    recipe: Recipe,
    report: Report,
    repo_id: str | None,
    revision: str | None,
    beside: Collection[str],
) -> dict[str, str]:
    used = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return {
        MARKER: f"# merged with {used}\n{recipe.to_yaml()}",
        REPORT_NAME: report.to_json(),
        "README.md": render_card(report, repo_id, revision, beside),
    }


def _write(folder: Path, contents: Mapping[str, str | bytes]) -> None:
    """Writes files; pictures of an earlier report that are not among them are removed."""
    for name, content in contents.items():
        write_file(folder / name, content)
    for path in folder.glob(PICTURES):
        if path.name not in contents:
            path.unlink()


def _pinned(reference: str, source: Source) -> str:
    """What loads the same commit again; an adapter with its base."""
    base = source.adapter_base
    if base is None:
        return pinned(reference, source.revision)
    own = pinned(source.reference, source.revision)
    return f"{pinned(base.reference, base.revision)}+{own}"
