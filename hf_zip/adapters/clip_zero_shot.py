"""CLIP's image encoder with embedded texts as a classifier (hf_zip's own class)."""

from dataclasses import replace

from hf_zip.adapters import Pooler, clip_vision
from hf_zip.modeling import HfZipClipConfig, HfZipClipForImageClassification


def example() -> HfZipClipForImageClassification:
    """Returns a small classifier with two joint spaces, whose sizes are different elsewhere."""
    return HfZipClipForImageClassification(
        HfZipClipConfig(
            vision_config=clip_vision.example().config.vision_config,
            projection_dim=7,
            spaces=2,
            num_labels=5,
        )
    )


ENTRY = replace(
    clip_vision.ENTRY,
    name="clip_zero_shot",
    model_types=(HfZipClipConfig.model_type,),
    example=example,
    readers=(),
    # Dividing by the norm leaves the order of the features of one space free.
    poolers=(Pooler(dense="visual_projection", readers=("classifier",), spaces="spaces"),),
    raw_head=False,
)
