"""Configuration of a model with one trunk and task heads of different kinds."""

from typing import Any

from transformers import AutoConfig, PretrainedConfig


class HfZipMultiHeadConfig(PretrainedConfig):
    """Describes a trunk and, for every task, the head of a native model.

    Args:
        trunk_config: Config of the native model without a head that is the trunk.
        heads: For each head the `name` of its task, the `kind` of answers that it gives, its
            `labels`, the `architecture` of the native model that it is the head of, that model's
            `config`, and the name of the `base` model in it, which the trunk stands for.
        unmerge: Whether each head reads the trunk through a linear map; else the trunk is in the
            head's own features.
        task: The task that is answered unless `forward` is told otherwise; left out, all are.
    """

    model_type = "hf_zip_multi_head"
    sub_configs = {"trunk_config": AutoConfig}  # noqa: RUF012

    def __init__(
        self,
        trunk_config: Any = None,
        heads: list[dict[str, Any]] | None = None,
        unmerge: bool = True,
        task: str | None = None,
        **kwargs: Any,
    ) -> None:
        if trunk_config is None:
            trunk_config = AutoConfig.for_model("bert")
        elif isinstance(trunk_config, dict):
            values = dict(trunk_config)
            trunk_config = AutoConfig.for_model(values.pop("model_type"), **values)
        self.trunk_config = trunk_config
        self.heads = list(heads or [])
        self.unmerge = unmerge
        self.task = task
        super().__init__(**kwargs)
        self.auto_map = {
            "AutoConfig": "configuration_hf_zip_multi_head.HfZipMultiHeadConfig",
            "AutoModel": "modeling_hf_zip_multi_head.HfZipMultiHeadModel",
        }
