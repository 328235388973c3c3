"""What `hf-zip inspect` shows: merge groups of a model, and whether models can be merged."""

from collections.abc import Sequence
from itertools import groupby

from hf_zip.adapters import adapter_for
from hf_zip.assemble import CONFIG_KEY
from hf_zip.groups import MergeGroup, head_names, merge_groups
from hf_zip.preflight import preflight, render
from hf_zip.recipe import ModelSpec
from hf_zip.sources import Source, load_sources
from hf_zip.tasks import labels_of, resolve_tasks


def describe(references: Sequence[str]) -> str:
    """Returns a plain text description of models and of how they fit together.

    Args:
        references: Local folders and Hub ids.

    Raises:
        HfZipError: A model cannot be loaded, or the models cannot be merged.
    """
    sources = load_sources([ModelSpec(reference) for reference in references])
    lines = [line for source in sources for line in _source_lines(source)]
    first = sources[0].model
    adapter = adapter_for(first.config.model_type)
    lines += [
        "",
        f"merge groups of {type(first).__name__}:",
        *_group_lines(merge_groups(first, adapter)),
    ]
    if len(sources) > 1:
        tasks = resolve_tasks(sources) if head_names(first, adapter) else ()
        lines += ["", render(preflight(sources, tasks, force=True))]
    return "\n".join(lines)


def _source_lines(source: Source) -> list[str]:
    model = source.model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    labels = labels_of(model.config)
    shown = ", ".join(labels[:8]) + (" …" if len(labels) > 8 else "")
    lines = [
        f"{source.reference}: {type(model).__name__}, {parameters / 1e6:.2f} M parameters",
        f"    revision: {source.revision or source.sha256}",
        f"    labels ({len(labels)}): {shown}",
    ]
    record = getattr(model.config, CONFIG_KEY, None)
    if record:
        tasks = ", ".join(f"{task['name']} ({len(task['labels'])})" for task in record["tasks"])
        lines.append(f"    a merge by {record.get('merge_method')} of the tasks {tasks}")
    return lines


def _group_lines(groups: Sequence[MergeGroup]) -> list[str]:
    lines = []
    for role, members in groupby(sorted(groups, key=lambda g: g.role), key=lambda g: g.role):
        same = list(members)
        first = same[0]
        heads = f" in {first.num_heads} heads" if first.num_heads > 1 else ""
        axes = sum(len(group.axes) for group in same)
        lines.append(
            f"    {role}: {len(same)} x {first.size} features{heads}, carried by {axes} axes"
        )
    return lines
