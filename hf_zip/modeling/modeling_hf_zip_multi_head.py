"""One trunk with the heads of several native models, which may be of different kinds."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_hf_zip_multi_head import HfZipMultiHeadConfig


@dataclass
class HfZipMultiHeadOutput(ModelOutput):
    """What all heads answer.

    Args:
        last_hidden_state: The trunk's stream, `[inputs, tokens, features]`.
        outputs: For every task what its native model returns.
        hidden_states: The trunk's hidden states, if asked for.
        attentions: The trunk's attentions, if asked for.
    """

    last_hidden_state: torch.Tensor | None = None
    outputs: dict[str, Any] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class HfZipTrunkView(nn.Module):
    """In the place of a native model's base: gives its head the trunk's stream.

    Args:
        width: Features of the trunk.
        base: The native model's own base; its pooler is kept.
        mapped: Whether the stream goes through a linear map to the base's own features.
    """

    def __init__(self, width: int, base: PreTrainedModel, mapped: bool) -> None:
        super().__init__()
        own = base.config.hidden_size
        self.unmerge = nn.Linear(width, own) if mapped else nn.Identity()
        self.pooler = getattr(base, "pooler", None)

    def forward(
        self, stream: torch.Tensor | None = None, inputs_embeds: Any = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Returns what the base would: the stream that it is given, in its own features.

        Args:
            stream: The trunk's stream, `[inputs, tokens, features]`.
            inputs_embeds: The same, from heads that pass embeddings on.
            **kwargs: What else a head gives its base; not used, but for `pixel_values`.
        """
        given = (stream, inputs_embeds, kwargs.get("pixel_values"))
        states = self.unmerge(next(x for x in given if x is not None))
        pooled = None if self.pooler is None else self.pooler(states)
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=pooled)


class HfZipMultiHeadModel(PreTrainedModel):
    """Answers several tasks, which may be of different kinds, with one trunk.

    Args:
        config: Its configuration.
    """

    config_class = HfZipMultiHeadConfig
    # Not the name of an attribute: else the trunk's parameter renamings would reach the heads.
    base_model_prefix = "zip"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: HfZipMultiHeadConfig) -> None:
        super().__init__(config)
        self.trunk = AutoModel.from_config(config.trunk_config)
        self.trunk.pooler = None  # those of the heads are their own
        width = config.trunk_config.hidden_size
        self.heads = nn.ModuleList(_head(entry, width, config.unmerge) for entry in config.heads)
        takes = [_takes(head) for head in self.heads]
        self._for_heads = set().union(*takes) - _takes(self.trunk)  # labels, positions
        self._places = [
            "inputs_embeds" if "inputs_embeds" in own else head.main_input_name
            for head, own in zip(self.heads, takes, strict=True)
        ]
        self.main_input_name = self.trunk.main_input_name
        self.post_init()

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks."""
        return tuple(entry["name"] for entry in self.config.heads)

    def set_task(self, task: str | None) -> None:
        """Has `forward` answer one task unless it is told otherwise, as pipelines need it.

        The labels of the config become those of the task.

        Args:
            task: Name of the task; left out, all are answered again.

        Raises:
            ValueError: There is no such task.
        """
        labels = []
        if task is not None:
            labels = self.config.heads[self._position(task)]["labels"]
        self.config.task = task
        self.config.id2label = dict(enumerate(labels))
        self.config.label2id = {label: i for i, label in enumerate(labels)}

    def get_input_embeddings(self) -> nn.Module:
        """Returns the trunk's embeddings."""
        embeddings: nn.Module = self.trunk.get_input_embeddings()
        return embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        task: str | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """Returns what the native model of a task returns; without a task, of every task.

        Args:
            input_ids: Tokens, `[inputs, tokens]`, as the native models take them; so are the next
                five.
            attention_mask: See `input_ids`.
            token_type_ids: See `input_ids`.
            position_ids: See `input_ids`.
            inputs_embeds: See `input_ids`.
            pixel_values: Images, `[inputs, channels, height, width]`; they may be given first.
            labels: What the native model of the task is trained on; so are the next two. They can
                be given with a task only.
            start_positions: See `labels`.
            end_positions: See `labels`.
            task: Name of the task to answer; left out, the config's, and if that names none, all.
            **kwargs: What else the native models take.

        Raises:
            ValueError: There is no such task, or something for one head is given without a task.
        """
        if input_ids is not None and input_ids.is_floating_point():
            # Images that are given first, as models of images take them.
            input_ids, pixel_values = None, input_ids
        named = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "pixel_values": pixel_values,
            "labels": labels,
            "start_positions": start_positions,
            "end_positions": end_positions,
        }
        inputs = {**{name: x for name, x in named.items() if x is not None}, **kwargs}
        task = task or self.config.task
        if task is None and len(self.heads) == 1:
            task = self.tasks[0]
        chosen = range(len(self.heads)) if task is None else [self._position(task)]
        only = self._for_heads & inputs.keys()
        if task is None and only:
            raise ValueError(
                f"{', '.join(sorted(only))} can be given for one task only; give task, one of "
                f"{', '.join(self.tasks)}"
            )
        trunk = self.trunk(**{name: x for name, x in inputs.items() if name not in only})
        answers = {self.tasks[i]: self._answer(i, trunk, inputs, only) for i in chosen}
        if task is not None:
            return answers[task]
        return HfZipMultiHeadOutput(
            last_hidden_state=trunk.last_hidden_state,
            outputs=answers,
            hidden_states=trunk.hidden_states,
            attentions=trunk.attentions,
        )

    def _answer(self, position: int, trunk: Any, inputs: Any, only: set[str]) -> Any:
        given = {name: x for name, x in inputs.items() if name in only or name == "attention_mask"}
        answer = self.heads[position](**{self._places[position]: trunk.last_hidden_state, **given})
        for name in ("hidden_states", "attentions"):
            if trunk.get(name) is not None:
                answer[name] = trunk[name]
        return answer

    def _position(self, task: str) -> int:
        if task not in self.tasks:
            raise ValueError(f"unknown task {task!r}; this model knows: {', '.join(self.tasks)}")
        return self.tasks.index(task)


def _takes(model: PreTrainedModel) -> set[str]:
    """The names of the arguments of a model."""
    return set(inspect.signature(model.forward).parameters)


def _head(entry: dict[str, Any], width: int, mapped: bool) -> PreTrainedModel:
    """A native model whose base is a view of the trunk."""
    values = dict(entry["config"])
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    # The blocks that it would have are the trunk's.
    config.num_hidden_layers = 0
    # The embeddings that a head could be tied to are the trunk's, which are in other features.
    config.tie_word_embeddings = False
    head: PreTrainedModel = getattr(transformers, entry["architecture"])(config)
    base: Any = head.get_submodule(entry["base"])
    head.set_submodule(entry["base"], HfZipTrunkView(width, base, mapped))
    return head
