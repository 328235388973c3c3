"""Configuration of a partially zipped model."""

from typing import Any

from transformers import AutoConfig, PretrainedConfig


class HfZipConfig(PretrainedConfig):
    """Describes a shared trunk and one tail per source.

    Args:
        trunk_config: Config of the native model that holds the embeddings and the shared blocks.
        tail_config: Config of the native model that holds the blocks of one tail.
        tails: For each tail its number of labels.
        tasks: For each task its `name`, its `labels`, its first row `start` among all labels, the
            tails (`members`) that answer it, and for each of them the `rows` of its head, in the
            order of the labels; nothing in place of a label that it does not have.
        layers: Name of the list of blocks in the native model.
        norm: Name of the last normalisation in the native model.
        slices: Whether the trunk holds the streams of all tails side by side, and each tail reads
            its own slice.
        unmerge: Whether each tail reads the trunk through a linear map; else its blocks are in the
            trunk's own features. Not used with `slices`.
    """

    model_type = "hf_zip"
    sub_configs = {"trunk_config": AutoConfig, "tail_config": AutoConfig}  # noqa: RUF012

    def __init__(
        self,
        trunk_config: Any = None,
        tail_config: Any = None,
        tails: list[int] | None = None,
        tasks: list[dict[str, Any]] | None = None,
        layers: str = "layers",
        norm: str = "layernorm",
        slices: bool = False,
        unmerge: bool = True,
        **kwargs: Any,
    ) -> None:
        self.trunk_config = _native(trunk_config)
        self.tail_config = _native(tail_config)
        self.tails = list(tails or [])
        self.tasks = list(tasks or [])
        self.layers = layers
        self.norm = norm
        self.slices = slices
        self.unmerge = unmerge
        super().__init__(**kwargs)
        self.auto_map = {
            "AutoConfig": "configuration_hf_zip.HfZipConfig",
            "AutoModel": "modeling_hf_zip.HfZipForImageClassification",
            "AutoModelForImageClassification": "modeling_hf_zip.HfZipForImageClassification",
        }

    @property
    def image_size(self) -> Any:
        """Height and width of the inputs."""
        return self.trunk_config.image_size

    @property
    def num_channels(self) -> int:
        """Number of channels of the inputs."""
        channels: int = self.trunk_config.num_channels
        return channels


def _native(config: Any) -> Any:
    if config is None:
        return AutoConfig.for_model("vit")
    if isinstance(config, dict):
        values = dict(config)
        return AutoConfig.for_model(values.pop("model_type"), **values)
    return config
