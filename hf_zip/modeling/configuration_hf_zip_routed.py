"""Configuration of a model that adds to or replaces shared weights by what suits each input."""

from typing import Any

from .configuration_hf_zip_masked import HfZipStackedConfig


class HfZipRoutedConfig(HfZipStackedConfig):
    """Describes a shared model with the heads of all sources, and what is kept of each of them.

    Args:
        trunk_config: See `HfZipStackedConfig`; so are the next two and `task`.
        members: See `trunk_config`.
        tasks: See `trunk_config`.
        reads: Name of the module whose input the router reads.
        features: How many features that input has.
        expert: Names of the parameters to which each source adds something.
        rank: Share of the directions of a matrix that are kept of what a source adds.
        separate: Names of what each source has of its own: the first one's is in the shared model,
            those of the others are beside it.
        routing: "soft" weighs what all sources have by how likely an input is of their tasks; "top"
            takes the likeliest alone.
        selects: Whether a label is as likely as its task by the router, times as it is within it.
        task: See `trunk_config`.
    """

    model_type = "hf_zip_routed"

    def __init__(
        self,
        trunk_config: Any = None,
        members: list[dict[str, Any]] | None = None,
        tasks: list[dict[str, Any]] | None = None,
        reads: str = "classifier",
        features: int = 0,
        expert: list[str] | None = None,
        rank: float = 0.1,
        separate: list[str] | None = None,
        routing: str = "soft",
        selects: bool = False,
        task: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.reads = reads
        self.features = features
        self.expert = list(expert or [])
        self.rank = rank
        self.separate = list(separate or [])
        self.routing = routing
        self.selects = selects
        super().__init__(trunk_config, members, tasks, task, **kwargs)
