"""The tensors of a safetensors file as views of the file, whose pages can be dropped again."""

import hashlib
import json
import mmap
import threading
from collections.abc import Mapping
from pathlib import Path
from weakref import WeakSet

import torch
from torch import Tensor

# What a merge reads; other types, such as quantised ones, are read by transformers.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "BOOL": torch.bool,
}
_OPEN: WeakSet["_Pages"] = WeakSet()
_MOST = 1 << 23  # bytes that are read before their memory is given back


class _Pages(mmap.mmap):
    """A mapped file; tensors that view it keep it."""


def mapped_tensors(path: Path) -> Mapping[str, Tensor] | None:
    """Returns a file's tensors by name, without reading them; nothing if some cannot be viewed.

    They are only to be read: what is written to them is lost with the next `release_pages`.

    Args:
        path: A safetensors file that was found to be whole.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        pages = _Pages(file.fileno(), 0, access=mmap.ACCESS_COPY)
    _OPEN.add(pages)
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype = _DTYPES.get(entry["dtype"])
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        if dtype is None or begin % dtype.itemsize:
            return None
        if begin == end:
            found[name] = torch.empty(entry["shape"], dtype=dtype)
            continue
        count = (end - begin) // dtype.itemsize
        flat = torch.frombuffer(pages, dtype=dtype, count=count, offset=begin)
        found[name] = flat.reshape(entry["shape"])
    return found


def sha256(file: Path) -> str:
    """Returns the SHA-256 of a file, whose pages are looked at where they are.

    Args:
        file: The file.
    """
    found = hashlib.sha256()
    if not file.stat().st_size:  # which cannot be mapped
        return found.hexdigest()
    with (
        file.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as pages,
        memoryview(pages) as whole,
    ):
        # Much at once: between two calls other threads of Python may come first.
        for start in range(0, len(whole), _MOST):
            with whole[start : start + _MOST] as part:
                found.update(part)
                _drop(pages, start, len(part))
    return found.hexdigest()


def release_pages() -> None:
    """Gives back the memory of what was read of mapped files; they are read again when needed."""
    _Read.count = 0
    for pages in [*_OPEN]:
        _drop(pages)


def _drop(pages: mmap.mmap, *part: int) -> None:
    """Lets go of the memory of mapped pages, where the system takes advice."""
    if hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED, *part)


def note_read(count: int) -> None:
    """Gives back the memory of what was read of mapped files once that is much.

    To do it after every few rows would take as long as reading them.

    Args:
        count: How many bytes were read since the last call, about.
    """
    with _Read.lock:
        _Read.count += count
        much = _Read.count > _MOST
        if much:
            _Read.count = 0
    if much:
        release_pages()


class _Read:
    """How many bytes were read since memory was given back, by all threads."""

    lock = threading.Lock()
    count = 0
