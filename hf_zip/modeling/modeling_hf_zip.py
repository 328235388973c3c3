"""A shared trunk with one tail and head per source: a partially zipped model."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils import can_return_tuple

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


class HfZipTailOutput(NamedTuple):
    """What a tail makes of the trunk's stream.

    Args:
        logits: Logits of the tail's own labels.
        hidden_states: What its blocks read, then what each of them gives; empty unless asked for.
        attentions: The attentions of its blocks; empty unless asked for.
    """

    logits: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...]
    attentions: tuple[torch.Tensor, ...]


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
        mapped = config.unmerge and not config.slices
        self.unmerge = (
            nn.Linear(config.trunk_config.hidden_size, width) if mapped else nn.Identity()
        )
        self.blocks = AutoModel.from_config(config.tail_config, add_pooling_layer=False)
        self.blocks.embeddings = nn.Identity()  # the trunk has them
        self.classifier = nn.Linear(width, config.tails[position])

    def forward(
        self, hidden_states: torch.Tensor, output_hidden_states: bool = False, **kwargs: Any
    ) -> HfZipTailOutput:
        """Returns what the tail makes of the trunk's stream.

        Args:
            hidden_states: The trunk's stream, `[inputs, tokens, features]`.
            output_hidden_states: Keep the hidden states.
            **kwargs: Passed to every block; `output_attentions` keeps the attentions.
        """
        if self.slice is not None:
            hidden_states = hidden_states[..., self.slice[0] : self.slice[1]]
        hidden_states = self.unmerge(hidden_states)
        states = [hidden_states]
        attentions: list[torch.Tensor] = []
        with self._record(attentions) if kwargs.get("output_attentions") else nullcontext():
            for layer in getattr(self.blocks, self.layers_name):
                hidden_states = layer(hidden_states, None, **kwargs)
                if output_hidden_states:  # else they would only fill the memory
                    states.append(hidden_states)
        normalised = getattr(self.blocks, self.norm_name)(hidden_states)
        return HfZipTailOutput(
            logits=self.classifier(normalised[:, 0]),
            hidden_states=tuple(states) if output_hidden_states else (),
            attentions=tuple(attentions),
        )

    @contextmanager
    def _record(self, attentions: list[torch.Tensor]) -> Iterator[None]:
        """Fills a list with the attentions of the blocks that run, as native models record them."""
        recorded = self.blocks._can_record_outputs["attentions"]

        def keep(_: nn.Module, __: Any, output: Any) -> None:
            if output[1] is not None:  # most attention implementations have none to show
                attentions.append(output[1])

        modules = [module for module in self.blocks.modules() if isinstance(module, recorded)]
        handles = [module.register_forward_hook(keep) for module in modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


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

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        task: str | None = None,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        output_hidden_states: bool | int | list[int] | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutput:
        """Returns logits, the loss if there are labels, and what happened inside if asked for.

        Hidden states and attentions: where one tail answers, those that a native model of its
        source has. The first states are the trunk's, and the one between is what the tail reads.
        Where several answer, all of the trunk's, then all of every tail's, in order: what it reads,
        and what each of its blocks gives.

        Args:
            pixel_values: Images, `[inputs, channels, height, width]`.
            task: Name of the task to answer; left out, the logits of all tasks stand side by side,
                and only then all tails run.
            labels: Right labels, `[inputs]`: among those of the task, or among all.
            interpolate_pos_encoding: Take images of another size than the model was made for.
            output_hidden_states: Return the hidden states; a position or several leave nothing in
                place of the others. Left out, what the config says.
            output_attentions: Return the attentions, for which the attention implementation should
                be eager. Left out, what the config says.
            **kwargs: Passed to every block.

        Raises:
            ValueError: There is no such task.
        """
        tasks = [entry for entry in self.config.tasks if task in (None, entry["name"])]
        if not tasks:
            names = ", ".join(entry["name"] for entry in self.config.tasks)
            raise ValueError(f"unknown task {task!r}; this model knows: {names}")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        kwargs["output_attentions"] = output_attentions
        kwargs["output_hidden_states"] = bool(output_hidden_states)
        trunk = self.trunk(
            pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
        )
        stream = trunk.last_hidden_state
        needed = sorted({member for entry in tasks for member in entry["members"]})
        answers = {i: self.tails[i](stream, **kwargs) for i in needed}
        logits = torch.cat([self._task_logits(entry, answers) for entry in tasks], dim=-1)
        loss = hidden_states = attentions = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits.float(), labels.to(logits.device))
        if output_hidden_states:
            # A trunk without blocks records nothing, but its stream is its last state in any case.
            shared = (*trunk.hidden_states[:-1], *([stream] if len(needed) > 1 else []))
            states = (*shared, *(state for i in needed for state in answers[i].hidden_states))
            hidden_states = _selected(states, output_hidden_states)
        if output_attentions:
            own = (attention for i in needed for attention in answers[i].attentions)
            attentions = (*trunk.attentions, *own)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=hidden_states, attentions=attentions
        )

    @staticmethod
    def _task_logits(entry: dict[str, Any], answers: dict[int, HfZipTailOutput]) -> torch.Tensor:
        """The logits of one task: of each label the mean of the tails that have it."""
        members = list(zip(entry["members"], entry["rows"], strict=True))
        if all(row is not None for _, own in members for row in own):
            rows = [answers[member].logits[..., list(own)] for member, own in members]
            return torch.stack(rows).mean(dim=0)
        labels = [
            [answers[member].logits[..., own[i]] for member, own in members if own[i] is not None]
            for i in range(len(entry["labels"]))
        ]
        return torch.stack([torch.stack(own).mean(dim=0) for own in labels], dim=-1)


def _selected(
    states: tuple[torch.Tensor, ...], wanted: bool | int | list[int]
) -> tuple[torch.Tensor | None, ...]:
    """Returns the states with nothing in place of those not asked for, as native models do."""
    if isinstance(wanted, bool):
        return states
    positions = [wanted] if isinstance(wanted, int) else wanted
    kept = [range(len(states))[i] for i in positions if -len(states) <= i < len(states)]
    return tuple(state if i in kept else None for i, state in enumerate(states))
