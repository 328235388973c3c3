"""Safetensors files of a model, sharded where they are large, written a few rows at a time."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor
from transformers import PreTrainedModel

from hf_zip.errors import HfZipError
from hf_zip.save import SHARD

_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.bool: "BOOL",
}
_ENDS = 8  # numbers at either end of what is written that are compared with the file later


@dataclass
class TensorWriter:
    """Files that tensors are written into, in any order.

    Args:
        places: For every tensor, by its name in the model, its file, its first byte there, and its
            like.
    """

    places: Mapping[str, tuple[BinaryIO, int, Tensor]]
    missing: dict[str, int] = field(init=False)
    ends: list[tuple[str, int, bytes]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        """Notes that all is still to be written."""
        self.missing = {name: like.numel() for name, (_, _, like) in self.places.items()}

    def write(self, name: str, start: int, tensor: Tensor) -> None:
        """Writes some numbers of a tensor, cast to its type.

        Args:
            name: The tensor's name in the model.
            start: How many of its numbers come before.
            tensor: The numbers.

        Raises:
            HfZipError: One is NaN or infinite.
        """
        file, first, like = self.places[name]
        flat = tensor.detach().to("cpu", like.dtype).flatten()
        # The sum is many times faster to check, and finite only if all are.
        if not flat.sum(dtype=torch.float64).isfinite() and not flat.isfinite().all():
            raise HfZipError(
                f"the merge of {name} is NaN or infinite in {like.dtype}; merge in a wider dtype, "
                "or with smaller factors"
            )
        self.missing[name] -= flat.numel()
        # Bytes, not tensors: these would lie scattered between the tensors that come and go.
        for place in {0, max(0, flat.numel() - _ENDS)}:
            self.ends.append((name, start + place, end_of(flat[place:])))
        data = flat.view(torch.uint8).numpy().data
        position = first + start * like.element_size()
        while len(data):
            done = os.pwrite(file.fileno(), data, position)
            data, position = data[done:], position + done


def end_of(numbers: Tensor) -> bytes:
    """Returns the first few numbers of a tensor as bytes."""
    return numbers[:_ENDS].view(torch.uint8).numpy().tobytes()


@contextmanager
def open_writer(
    folder: Path,
    model: PreTrainedModel,
    names: Mapping[str, tuple[str, Tensor]],
    max_shard_size: str = SHARD,
) -> Iterator[TensorWriter]:
    """Yields what writes a model's tensors as `save_pretrained` would, in files of its sizes.

    Args:
        folder: Where to.
        model: The model, on the meta device.
        names: For every tensor by its name in the model the one in the files, and its like.
        max_shard_size: Size of a file beyond which another begins.

    Raises:
        HfZipError: A tensor was not written whole.
    """
    likes = dict(names.values())
    split = split_torch_state_dict_into_shards(
        likes, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
    )
    own = {written: name for name, (written, _) in names.items()}
    places = {}
    with ExitStack() as stack:
        for file_name, tensors in split.filename_to_tensors.items():
            file = stack.enter_context((folder / file_name).open("w+b"))
            offsets = _begin(file, {tensor: likes[tensor] for tensor in tensors})
            for tensor, offset in offsets.items():
                places[own[tensor]] = (file, offset, likes[tensor])
        writer = TensorWriter(places)
        yield writer
        unwritten = [name for name, count in writer.missing.items() if count]
        if unwritten:
            raise HfZipError(
                f"{', '.join(unwritten[:3])} of {type(model).__name__} were not merged; the merge "
                "method or the table of the family is at fault"
            )
    if split.is_sharded:
        index = {
            "metadata": {"total_parameters": model.num_parameters(), **split.metadata},
            "weight_map": split.tensor_to_filename,
        }
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _begin(file: BinaryIO, likes: Mapping[str, Tensor]) -> dict[str, int]:
    """Writes the header of a safetensors file, makes room, and returns where each tensor begins."""
    order = sorted(likes, key=lambda name: (-likes[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end, begins = 0, {}
    for name in order:
        like = likes[name]
        begins[name], end = end, end + like.numel() * like.element_size()
        header[name] = {
            "dtype": _TYPES[like.dtype],
            "shape": list(like.shape),
            "data_offsets": [begins[name], end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    file.flush()
    os.ftruncate(file.fileno(), 8 + len(text) + end)
    return {name: 8 + len(text) + begin for name, begin in begins.items()}
