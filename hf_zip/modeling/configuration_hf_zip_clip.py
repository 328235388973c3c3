"""Configuration of a CLIP image encoder that classifies by the embeddings of texts."""

from typing import Any

from transformers import CLIPVisionConfig, PretrainedConfig


class HfZipClipConfig(PretrainedConfig):
    """Describes an image encoder, what it is projected to, and how many spaces that holds.

    Args:
        vision_config: Config of the native image encoder.
        projection_dim: Features of one joint space of images and texts.
        spaces: Number of joint spaces side by side: those of as many models, each of which has
            embedded its texts in its own.
    """

    model_type = "hf_zip_clip"
    sub_configs = {"vision_config": CLIPVisionConfig}  # noqa: RUF012

    def __init__(
        self,
        vision_config: Any = None,
        projection_dim: int = 512,
        spaces: int = 1,
        **kwargs: Any,
    ) -> None:
        if not isinstance(vision_config, CLIPVisionConfig):
            vision_config = CLIPVisionConfig(**(vision_config or {}))
        self.vision_config = vision_config
        self.projection_dim = projection_dim
        self.spaces = spaces
        super().__init__(**kwargs)
        self.auto_map = {
            "AutoConfig": "configuration_hf_zip_clip.HfZipClipConfig",
            "AutoModel": "modeling_hf_zip_clip.HfZipClipForImageClassification",
            "AutoModelForImageClassification": (
                "modeling_hf_zip_clip.HfZipClipForImageClassification"
            ),
        }
