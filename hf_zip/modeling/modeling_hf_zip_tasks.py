"""What models have in common that answer tasks by weights that are made when they run."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput, can_return_tuple

from .modeling_hf_zip_clip import HfZipClipForImageClassification

T = TypeVar("T")


class HfZipTasksModel(PreTrainedModel):
    """Answers several tasks by weights that are made when they are asked for first, and kept.

    As many are kept as `keep` says, left out all, until what they are made of is moved, cast or
    loaded. Only what they are made of is saved. It is not trained: a native model of one task is.

    Args:
        config: Its configuration, with `tasks`, `apart` and `task`.
    """

    # Not the name of an attribute: else parameter renamings would reach what is shared.
    base_model_prefix = "zip"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.keep: int | None = None
        self._made: dict[int, Any] = {}

    @property
    def task_names(self) -> tuple[str, ...]:
        """The names of the tasks."""
        return tuple(entry["name"] for entry in self.config.tasks)

    def set_task(self, task: str | None) -> None:
        """Has `forward` answer one task unless it is told otherwise, as pipelines may need it.

        The labels of the config become those of the task.

        Args:
            task: Name of the task; left out, all are answered again.

        Raises:
            ValueError: There is no such task.
        """
        entries = self.entries(task)
        together = task is not None or not self.config.apart
        labels = [label for entry in entries for label in entry["labels"]] if together else []
        self.config.task = task
        self.config.id2label = dict(enumerate(labels))
        self.config.label2id = {label: i for i, label in enumerate(labels)}

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
        task: str | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """Returns what answers a task; without one, what answers all of them.

        Args:
            input_ids: Tokens, `[inputs, tokens]`, as the native models take them; so are the next
                five.
            attention_mask: See `input_ids`.
            token_type_ids: See `input_ids`.
            position_ids: See `input_ids`.
            inputs_embeds: See `input_ids`.
            pixel_values: Images, `[inputs, channels, height, width]`; they may be given first.
            labels: Right labels: of each input its position among those of the task, or of all. A
                task that one native model answers takes what that is trained on.
            task: Name of the task, where it is known; left out, the config's, and if that names
                none, all are answered.
            **kwargs: What else the native models take.

        Raises:
            ValueError: There is no such task, or labels are given for tasks that are not all about
                one label of an input.
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
        }
        inputs = {**{name: x for name, x in named.items() if x is not None}, **kwargs}
        return self.respond(inputs, labels, task or self.config.task)

    def respond(
        self, inputs: Mapping[str, Any], labels: torch.Tensor | None, task: str | None
    ) -> ModelOutput:
        """Returns what `forward` does.

        Args:
            inputs: What native models take.
            labels: See `forward`.
            task: The task; left out, all are answered.
        """
        raise NotImplementedError

    def entries(self, task: str | None) -> list[dict[str, Any]]:
        """Returns what the config says of a task, or of all.

        Args:
            task: Name of the task; left out, all.

        Raises:
            ValueError: There is no such task.
        """
        found: list[dict[str, Any]] = self.config.tasks if task is None else [self.task_entry(task)]
        return found

    def task_entry(self, task: str) -> dict[str, Any]:
        """Returns what the config says of a task.

        Raises:
            ValueError: There is no such task.
        """
        for entry in self.config.tasks:
            if entry["name"] == task:
                found: dict[str, Any] = entry
                return found
        raise ValueError(f"unknown task {task!r}; this model knows: {', '.join(self.task_names)}")

    @torch.inference_mode(False)  # else what was made there could be used nowhere else
    @torch.no_grad()
    def made(self, position: int, make: Callable[[int], T]) -> T:
        """Returns what is made of one source, made now if it is not kept.

        Args:
            position: Which source.
            make: Makes it.
        """
        if position in self._made:
            found: T = self._made.pop(position)
        else:
            while self.keep is not None and len(self._made) >= max(self.keep, 1):
                self._made.pop(next(iter(self._made)))  # what was asked for longest ago
            found = make(position)
        self._made[position] = found
        return found

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "HfZipTasksModel":
        self._made.clear()
        moved: HfZipTasksModel = super()._apply(fn, recurse)
        return moved

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Loads what weights are made of; those that were made are forgotten."""
        self._made.clear()
        return super().load_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": {}}  # copies and pickles make theirs again


@dataclass
class HfZipStackedOutput(ModelOutput):
    """The logits, and how they came about.

    Args:
        loss: The loss, if there are labels.
        logits: The logits of the task's labels, or of those of all tasks side by side.
        task_weights: Share of each source in the weights of an input, `[inputs, sources]`,
            or `[inputs, blocks, sources]` where it has one in every block.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    task_weights: torch.Tensor | None = None


class HfZipStackedModel(HfZipTasksModel):
    """Answers all tasks by a shared model that has their heads' rows, and what is added to it.

    Args:
        config: Its configuration, with `trunk_config` and `members` too.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        cls: Any = native_class(config.members[0])
        self.shared: PreTrainedModel = cls(config.trunk_config)
        self.main_input_name = self.shared.main_input_name
        self.input_modalities = self.shared.input_modalities

    def respond(
        self, inputs: Mapping[str, Any], labels: torch.Tensor | None, task: str | None
    ) -> HfZipStackedOutput:
        """Returns the logits of a task; without one, of all tasks side by side.

        Args:
            inputs: What the shared model takes.
            labels: See `forward`.
            task: See `forward`.

        Raises:
            ValueError: See `forward`.
        """
        entries = self.entries(task)
        if labels is not None and any(entry["kind"] != "classification" for entry in entries):
            raise ValueError(
                "labels can be given for tasks that ask for one label of an input only, and "
                f"{', '.join(entry['name'] for entry in entries)} ask for something else"
            )
        logits, weights = self.answer(inputs, task)
        if task is not None:
            start = entries[0]["start"]
            logits = logits[..., start : start + len(entries[0]["labels"])]
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits.float(), labels.to(logits.device))
        return HfZipStackedOutput(loss=loss, logits=logits, task_weights=weights)

    def answer(
        self, inputs: Mapping[str, Any], task: str | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns the logits of all labels, and the share of each source; here nothing is added.

        Args:
            inputs: What the shared model takes.
            task: The task, where it is known.
        """
        return self.shared(**inputs).logits, None


def native_class(entry: Mapping[str, Any]) -> type[PreTrainedModel]:
    """Returns the class of a source's native model.

    Args:
        entry: What the config says of the source.
    """
    own = HfZipClipForImageClassification
    name = entry["architecture"]
    found: type[PreTrainedModel] = own if name == own.__name__ else getattr(transformers, name)
    return found


class NamedTensors(nn.Module):
    """Tensors under the names that they have in a native model, as frozen parameters or buffers.

    Args:
        like: For each name a tensor of its shape: a parameter, or else a buffer.
    """

    def __init__(self, like: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._names = tuple(like)
        for name, tensor in like.items():
            module: nn.Module = self
            *path, leaf = name.split(".")
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            dtype = None if tensor.is_floating_point() else tensor.dtype
            zeros = torch.zeros(tensor.shape, dtype=dtype)
            if isinstance(tensor, nn.Parameter):
                module.register_parameter(leaf, nn.Parameter(zeros, requires_grad=False))
            else:
                module.register_buffer(leaf, zeros)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields the tensors with their names, in the order in which they were given."""
        for name in self._names:
            place, _, leaf = name.rpartition(".")
            yield name, getattr(self.get_submodule(place), leaf)
