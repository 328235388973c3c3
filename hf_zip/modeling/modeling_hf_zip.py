"""A shared trunk with one tail and head per source: a partially zipped model."""

from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from .configuration_hf_zip import HfZipConfig


class HfZipPreTrainedModel(PreTrainedModel):
    """What the auto classes and the loading code need to know."""

    config_class = HfZipConfig
    # Not the name of an attribute: else the trunk's parameter renamings would reach the tails.
    base_model_prefix = "zip"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True


class HfZipTail(nn.Module):
    """The blocks and the head of one source, after the trunk.

    Args:
        config: Config of the whole model.
        position: Which tail.
    """

    def __init__(self, config: HfZipConfig, position: int) -> None:
        super().__init__()
        width = config.tail_config.hidden_size
        self.layers_name, self.norm_name = config.layers, config.norm
        self.slice = (position * width, (position + 1) * width) if config.slices else None
        if not config.slices:
            self.unmerge = nn.Linear(config.trunk_config.hidden_size, width)
        self.blocks = AutoModel.from_config(config.tail_config, add_pooling_layer=False)
        self.blocks.embeddings = nn.Identity()  # the trunk has them
        self.classifier = nn.Linear(width, config.tails[position])

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Returns the logits of the tail's own labels.

        Args:
            hidden_states: The trunk's stream, `[inputs, tokens, features]`.
            **kwargs: Passed to every block.
        """
        if self.slice is not None:
            hidden_states = hidden_states[..., self.slice[0] : self.slice[1]]
        else:
            hidden_states = self.unmerge(hidden_states)
        for layer in getattr(self.blocks, self.layers_name):
            hidden_states = layer(hidden_states, None, **kwargs)
        hidden_states = getattr(self.blocks, self.norm_name)(hidden_states)
        logits: torch.Tensor = self.classifier(hidden_states[:, 0])
        return logits


class HfZipForImageClassification(HfZipPreTrainedModel):
    """Classifies images for several tasks: shared blocks, then one tail per source.

    Args:
        config: Its configuration.
    """

    def __init__(self, config: HfZipConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.trunk = AutoModel.from_config(config.trunk_config, add_pooling_layer=False)
        setattr(self.trunk, config.norm, nn.Identity())  # the tails normalise
        self.tails = nn.ModuleList(HfZipTail(config, i) for i in range(len(config.tails)))
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        task: str | None = None,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutput | tuple[torch.Tensor, ...]:
        """Returns logits, and the loss if there are labels.

        Args:
            pixel_values: Images, `[inputs, channels, height, width]`.
            task: Name of the task to answer; left out, the logits of all tasks stand side by side,
                and only then all tails run.
            labels: Right labels, `[inputs]`: among those of the task, or among all.
            interpolate_pos_encoding: Take images of another size than the model was made for.
            return_dict: Return a tuple if false.
            **kwargs: Passed to every block.

        Raises:
            ValueError: There is no such task.
        """
        tasks = [entry for entry in self.config.tasks if task in (None, entry["name"])]
        if not tasks:
            names = ", ".join(entry["name"] for entry in self.config.tasks)
            raise ValueError(f"unknown task {task!r}; this model knows: {names}")
        kwargs.pop("output_hidden_states", None)
        kwargs.pop("output_attentions", None)
        outputs = self.trunk(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
        hidden_states = outputs.last_hidden_state
        needed = sorted({member for entry in tasks for member in entry["members"]})
        answers = {i: self.tails[i](hidden_states, **kwargs) for i in needed}
        logits = torch.cat([self._task_logits(entry, answers) for entry in tasks], dim=-1)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits.float(), labels.to(logits.device))
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return ImageClassifierOutput(loss=loss, logits=logits)

    @staticmethod
    def _task_logits(entry: dict[str, Any], answers: dict[int, torch.Tensor]) -> torch.Tensor:
        """The logits of one task: the mean of those of the tails that answer it."""
        members = zip(entry["members"], entry["rows"], strict=True)
        rows = [answers[member][..., list(own)] for member, own in members]
        return torch.stack(rows).mean(dim=0)
