"""What the tables know of a model: its merge groups, or why there are none."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from hf_zip.adapters import Adapter, adapter_of
from hf_zip.errors import HfZipError
from hf_zip.groups import MergeGroup, merge_groups


@dataclass(frozen=True)
class Support:
    """What the tables know of a model.

    Args:
        adapter: Its family's table; nothing if there is none that covers its class.
        groups: Its merge groups; none without a table.
        obstacle: Why there is no table; nothing if there is one.
    """

    adapter: Adapter | None = None
    groups: tuple[MergeGroup, ...] = ()
    obstacle: str = ""


def support(model: PreTrainedModel) -> Support:
    """Returns what the tables know of a model."""
    try:
        adapter = adapter_of(model)
        return Support(adapter, merge_groups(model, adapter))
    except HfZipError as error:
        return Support(obstacle=str(error))
