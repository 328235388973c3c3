"""A CLIP image encoder with one row of a classifier for the embedding of every class's texts."""

from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils import can_return_tuple

from .configuration_hf_zip_clip import HfZipClipConfig


class HfZipClipForImageClassification(PreTrainedModel):
    """Classifies images as CLIP does without training: by their cosines with embedded texts.

    The projection of the class token is divided by its norm, in every joint space by its own, and
    a row of the classifier is the embedding of a class's texts times CLIP's scale. The two biases,
    which CLIP lacks, are zero until a merge fits the layers anew.

    Args:
        config: Its configuration.
    """

    config_class = HfZipClipConfig
    # Not the name of an attribute: else the encoder's parameter renamings would reach the head.
    base_model_prefix = "zip"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: HfZipClipConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        features = config.projection_dim * config.spaces
        self.vision_model = AutoModel.from_config(config.vision_config)
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, features)
        self.classifier = nn.Linear(features, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | int | list[int] | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutput:
        """Returns logits, the loss if there are labels, and what happened inside if asked for.

        Args:
            pixel_values: Images, `[inputs, channels, height, width]`.
            labels: Right labels, `[inputs]`.
            interpolate_pos_encoding: Take images of another size than the model was made for.
            output_hidden_states: Return the hidden states. Left out, what the config says.
            output_attentions: Return the attentions, for which the attention implementation should
                be eager. Left out, what the config says.
            **kwargs: Passed to every block.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        encoded = self.vision_model(
            pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            **kwargs,
        )
        embeddings = self.visual_projection(encoded.pooler_output)
        embeddings = embeddings.unflatten(-1, (self.config.spaces, self.config.projection_dim))
        embeddings = embeddings / embeddings.norm(dim=-1, keepdim=True)
        logits = self.classifier(embeddings.flatten(-2))
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits.float(), labels.to(logits.device))
        return ImageClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
