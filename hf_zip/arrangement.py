"""What becomes of the heads of models in a merge: stacked, merged with the trunk, or kept apart."""

from collections.abc import Sequence

from hf_zip.errors import HfZipError
from hf_zip.headless import headless, heads_apart
from hf_zip.kinds import has_labels, head_kind
from hf_zip.recipe import Labels
from hf_zip.sources import Source
from hf_zip.task_head import task_heads
from hf_zip.tasks import Task, resolve_tasks, separate_tasks


def trunks_of(sources: Sequence[Source]) -> Sequence[Source]:
    """Returns what is merged: the models, or their trunks where the heads stay apart.

    Args:
        sources: The models; returned as they are where they are merged whole.

    Raises:
        HfZipError: See `heads_apart`.
    """
    return tuple(map(headless, sources)) if heads_apart(sources) else sources


def arrange_heads(
    sources: Sequence[Source], labels: Labels | None = None
) -> tuple[tuple[str, ...], tuple[Task, ...]]:
    """Returns the linear layers whose rows are stacked, and the tasks.

    There are no such layers where the heads stay apart or are merged with the trunk, and no tasks
    where the models answer none.

    Args:
        sources: The models.
        labels: What becomes of labels that tasks share, see `resolve_tasks`.

    Raises:
        HfZipError: A head is of a kind that is not supported, or has other rows than its labels; or
            the tasks contradict one another.
    """
    if heads_apart(sources):
        return (), separate_tasks(sources)
    _check_rows(sources)
    heads = task_heads(sources[0].model)
    return heads, resolve_tasks(sources, labels) if heads or _share_a_head(sources) else ()


def _check_rows(sources: Sequence[Source]) -> None:
    for source in sources:
        labels, name = source.model.config.num_labels, type(source.model).__name__
        for head in task_heads(source.model):
            rows = source.model.get_submodule(head).out_features
            if head_kind(source.model) == "other":
                raise HfZipError(
                    f"{source.reference!r} is a {name}, whose head is not supported: its rows are "
                    "no labels of a task. Supported are heads of sequence, image and token "
                    "classification, regression, question answering and masked language models, "
                    "and models without a head"
                )
            if rows != labels:
                raise HfZipError(
                    f"{head} of {source.reference!r} has {rows} rows, but its config names "
                    f"{labels} labels; only heads with one row per label can be merged"
                )


def _share_a_head(sources: Sequence[Source]) -> bool:
    """Tells whether the models answer questions by heads that are merged with their trunks."""
    return not any(has_labels(head_kind(source.model)) for source in sources)
