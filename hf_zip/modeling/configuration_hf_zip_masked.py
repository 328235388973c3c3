"""Configuration of a model that makes the weights of every source of one vector and its mask."""

from typing import Any

from transformers import AutoConfig, PretrainedConfig

from .configuration_hf_zip_clip import HfZipClipConfig

# Part of the name of a native class → the auto class that loads such models.
_AUTO_CLASSES = (
    "ForImageClassification",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMaskedLM",
)


class HfZipMaskedConfig(PretrainedConfig):
    """Describes what the sources of a merge share, and what is kept of each of them.

    Args:
        trunk_config: Config of the first source.
        members: For each source the `architecture` of its native model, that model's `config`, the
            `prefix` that the names of what is shared have in it, the names of what is its `own`,
            and the `scale` of what its mask leaves of the vector.
        tasks: For each task its `name`, its `kind`, its `labels`, its first row `start` among all
            labels, the sources (`members`) that answer it, and for each of them the `rows` of its
            head, in the order of the labels; nothing in place of a label that it does not have.
        apart: Whether the answers to the tasks cannot stand side by side.
        task: The task that is answered unless `forward` is told otherwise; left out, all are.
    """

    model_type = "hf_zip_masked"
    sub_configs = {"trunk_config": AutoConfig}  # noqa: RUF012

    def __init__(
        self,
        trunk_config: Any = None,
        members: list[dict[str, Any]] | None = None,
        tasks: list[dict[str, Any]] | None = None,
        apart: bool = False,
        task: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.trunk_config = native_config(trunk_config)
        self.members = list(members or [])
        self.tasks = list(tasks or [])
        self.apart = apart
        self.task = task
        super().__init__(**kwargs)
        # The modules of a config and of its model, and these, are named alike.
        module, name = type(self).__module__.rpartition(".")[2], type(self).__name__
        own = f"{module}.{name}".replace("configuration_", "modeling_").replace("Config", "Model")
        self.auto_map = {
            "AutoConfig": f"{module}.{name}",
            "AutoModel": own,
            **{f"AutoModel{part}": own for part in _AUTO_CLASSES if part in self._classes},
        }

    @property
    def _classes(self) -> str:
        return " ".join(entry["architecture"] for entry in self.members)

    @property
    def image_size(self) -> Any:
        """Height and width of the inputs, of a model that takes images."""
        return getattr(_of_images(self.trunk_config), "image_size", None)

    @property
    def num_channels(self) -> int | None:
        """Number of channels of the inputs, of a model that takes images."""
        return getattr(_of_images(self.trunk_config), "num_channels", None)


class HfZipStackedConfig(HfZipMaskedConfig):
    """Describes a shared model that has the rows of all heads.

    Args:
        trunk_config: Config of the shared model, a native one with the labels of all tasks.
        members: For each source the `architecture` of its native model, which is the shared one's.
        tasks: See `HfZipMaskedConfig`.
        task: The task that is answered unless `forward` is told otherwise; left out, all are.
    """

    def __init__(
        self,
        trunk_config: Any = None,
        members: list[dict[str, Any]] | None = None,
        tasks: list[dict[str, Any]] | None = None,
        task: str | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("apart", None)  # stacked rows never are
        super().__init__(trunk_config, members, tasks, False, task, **kwargs)


def native_config(config: Any) -> Any:
    """Returns the config that a mapping describes.

    Args:
        config: The mapping, or a config; left out, that of a BERT.
    """
    if config is None:
        return AutoConfig.for_model("bert")
    if not isinstance(config, dict):
        return config
    values = dict(config)
    kind = values.pop("model_type")
    if kind == HfZipClipConfig.model_type:  # which the auto class may not know
        return HfZipClipConfig(**values)
    return AutoConfig.for_model(kind, **values)


def _of_images(config: Any) -> Any:
    return getattr(config, "vision_config", config)
