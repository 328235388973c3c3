"""Configuration of a model whose MLPs are mixed for each input."""

from typing import Any

from .configuration_hf_zip_masked import HfZipStackedConfig


class HfZipMixtureConfig(HfZipStackedConfig):
    """Describes a shared model with the heads of all sources, and the MLPs to which they add.

    Args:
        trunk_config: See `HfZipStackedConfig`; so are the next two and `task`.
        members: See `trunk_config`.
        tasks: See `trunk_config`.
        mlps: Of each block the names of the two linear layers of its MLP.
        layers: How many linear layers a router has.
        task: See `trunk_config`.
    """

    model_type = "hf_zip_mixture"

    def __init__(
        self,
        trunk_config: Any = None,
        members: list[dict[str, Any]] | None = None,
        tasks: list[dict[str, Any]] | None = None,
        mlps: list[list[str]] | None = None,
        layers: int = 2,
        task: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.mlps = [list(names) for names in mlps or []]
        self.layers = layers
        super().__init__(trunk_config, members, tasks, task, **kwargs)
