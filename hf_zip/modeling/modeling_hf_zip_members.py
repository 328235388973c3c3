"""What models have in common that make the weights of each of their sources when they are asked."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.utils import ModelOutput

from .configuration_hf_zip_masked import native_config
from .modeling_hf_zip_tasks import HfZipTasksModel, NamedTensors, native_class

_ANSWERS = ("logits", "start_logits", "end_logits")


@dataclass
class HfZipMembersOutput(ModelOutput):
    """What is answered to several tasks, or by several sources to one.

    Args:
        loss: The loss, if there are labels.
        logits: The logits of the labels, side by side where there are several tasks.
        start_logits: Where spans begin, where that is asked.
        end_logits: Where they end.
        outputs: For every task what answers it, where they cannot stand side by side.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    start_logits: torch.Tensor | None = None
    end_logits: torch.Tensor | None = None
    outputs: dict[str, Any] | None = None


class HfZipMembersModel(HfZipTasksModel):
    """Answers the tasks of several native models, of which it makes the weights.

    Args:
        config: Its configuration, with `members` too.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        with torch.device("meta"):
            skeletons: list[Any] = [
                native_class(entry)(_config_of(entry)) for entry in config.members
            ]
        tensors = [_saved(skeleton) for skeleton in skeletons]
        self.own = nn.ModuleList(
            NamedTensors({name: known[name] for name in entry["own"]})
            for entry, known in zip(config.members, tensors, strict=True)
        )
        self._shapes = {
            name.removeprefix(config.members[0]["prefix"]): tensor.shape
            for name, tensor in tensors[0].items()
            if name not in config.members[0]["own"]
        }
        self.main_input_name = skeletons[0].main_input_name
        self.input_modalities = skeletons[0].input_modalities

    def weights(self, position: int) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields what is shared as one source has it, by its name; here nothing is shared.

        Args:
            position: Which source.
        """
        return iter(())

    def native(self, position: int) -> PreTrainedModel:
        """Returns the native model of one source; what it has of its own are this model's tensors.

        Args:
            position: Which source.
        """
        found = self.made(position, self._native)
        wanted = self.config._attn_implementation
        if found.config._attn_implementation != wanted and (
            found._supports_sdpa or wanted != "sdpa"
        ):
            found.set_attn_implementation(wanted)
        return found if found.training == self.training else found.train(self.training)

    def _native(self, position: int) -> PreTrainedModel:
        entry = self.config.members[position]
        with torch.random.fork_rng(devices=[]), no_init_weights():
            native: Any = native_class(entry)(_config_of(entry))
        native.tie_weights()
        native.to(self.device)
        parameters = dict(native.named_parameters())
        for name, tensor in self.weights(position):
            parameters[entry["prefix"] + name].data = tensor
        kept: Any = self.own[position]
        own = dict(kept.tensors())
        for name in entry["own"]:
            if name in parameters:
                parameters[name].data = own[name].data
            else:
                place, _, leaf = name.rpartition(".")
                native.get_submodule(place).register_buffer(leaf, own[name])
        made: PreTrainedModel = native.requires_grad_(False)
        return made

    def respond(
        self, inputs: Mapping[str, Any], labels: torch.Tensor | None, task: str | None
    ) -> ModelOutput:
        """Returns what answers a task; without one, the logits of all tasks side by side.

        Where those cannot stand side by side, as they are of several kinds, `outputs` has them by
        task. A task of one source is answered by the output of its native model, with whatever of
        hidden states and attentions is asked for.

        Args:
            inputs: What the native models take.
            labels: See `forward`.
            task: See `forward`.

        Raises:
            ValueError: See `forward`.
        """
        entries = self.entries(task)
        if len(entries) == 1 and _is_native(entries[0], self.config.members):
            given = inputs if labels is None else {**inputs, "labels": labels}
            answer: ModelOutput = self.native(entries[0]["members"][0])(**given)
            return answer
        return self._together(entries, inputs, labels)

    def _together(
        self, entries: list[dict[str, Any]], inputs: Mapping[str, Any], labels: torch.Tensor | None
    ) -> HfZipMembersOutput:
        """Answers tasks of which one has several sources, or of which there are several."""
        if labels is not None and any(entry["kind"] != "classification" for entry in entries):
            raise ValueError(
                "labels can be given for one task of one source only, or for tasks that ask for "
                f"one label of an input; give task, one of {', '.join(self.task_names)}"
            )
        needed = dict.fromkeys(member for entry in entries for member in entry["members"])
        found = {member: self.native(member)(**inputs) for member in needed}
        answers = [_answer(entry, found) for entry in entries]
        if len(entries) > 1 and self.config.apart:
            names = [entry["name"] for entry in entries]
            return HfZipMembersOutput(outputs=dict(zip(names, answers, strict=True)))
        if len(entries) > 1:
            logits = torch.cat([answer["logits"] for answer in answers], dim=-1)
            answers = [HfZipMembersOutput(logits=logits)]
        (answer,) = answers
        if labels is not None and answer.logits is not None:
            target = labels.to(answer.logits.device)
            answer.loss = nn.functional.cross_entropy(answer.logits.float(), target)
        return answer

    def get_input_embeddings(self) -> nn.Module:
        """Returns the embeddings of the first source."""
        embeddings: nn.Module = self.native(0).get_input_embeddings()
        return embeddings


def _config_of(entry: Mapping[str, Any]) -> Any:
    return native_config(entry["config"])


def _saved(native: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The parameters of a model, each tied one once, and the buffers that are saved with it."""
    saved = native.state_dict().keys()
    buffers = {name: buffer for name, buffer in native.named_buffers() if name in saved}
    return {**dict(native.named_parameters()), **buffers}


def _is_native(entry: Mapping[str, Any], members: list[dict[str, Any]]) -> bool:
    """Tells whether a task is answered by all rows of one source, in their order."""
    if len(entry["members"]) > 1:
        return False
    labels = members[entry["members"][0]]["config"].get("id2label", ())
    return not entry["labels"] or list(entry["rows"][0]) == list(range(len(labels)))


def _answer(entry: Mapping[str, Any], found: Mapping[int, Any]) -> HfZipMembersOutput:
    """What answers one task: of each label the mean of the sources that have it."""
    outputs = [found[member] for member in entry["members"]]
    if not entry["labels"]:
        means: dict[str, Any] = {
            name: torch.stack([output[name] for output in outputs]).mean(dim=0)
            for name in _ANSWERS
            if name in outputs[0]
        }
        return HfZipMembersOutput(**means)
    labels: list[torch.Tensor] = []
    for i in range(len(entry["labels"])):
        pairs = zip(outputs, entry["rows"], strict=True)
        having = [output.logits[..., own[i]] for output, own in pairs if own[i] is not None]
        labels.append(torch.stack(having).mean(dim=0))
    return HfZipMembersOutput(logits=torch.stack(labels, dim=-1))
