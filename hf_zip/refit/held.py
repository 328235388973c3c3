"""Room for the streams of a calibration set: in memory up to a limit, then in temporary files."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from hf_zip.errors import HfZipError

Key = tuple[str, int]
GIB = 2**30


@dataclass(frozen=True)
class _File:
    """A tensor on disk."""

    path: Path
    shape: torch.Size
    dtype: torch.dtype


class Held:
    """Tensors by name and batch, of which only so much is in memory.

    What does not fit is written to a temporary folder, which is removed when the context ends, also
    by an error. A tensor reads back as it was written, to the last bit.

    Args:
        memory: What may be held in memory, in GiB, at least 0.
        device: Where tensors are when they are read.

    Example:
        >>> with Held(memory=0.0) as held:
        ...     held["stream", 0] = torch.tensor([1.0, 2.0])
        ...     held.pop("stream", 0).tolist()
        [1.0, 2.0]
    """

    def __init__(self, memory: float, device: torch.device | str = "cpu") -> None:
        self._left = memory * GIB
        self._device = device
        self._tensors: dict[Key, Tensor] = {}
        self._files: dict[Key, _File] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._written = 0

    def __enter__(self) -> "Held":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tensors.clear()
        self._files.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def __setitem__(self, key: Key, tensor: Tensor) -> None:
        """Holds a tensor, in the place of what had its key.

        Raises:
            HfZipError: There is no room on the disk either.
        """
        if key in self:
            del self[key]
        # In memory as on disk: products of the same numbers laid out otherwise may round otherwise.
        tensor = tensor.contiguous()
        if tensor.nbytes <= self._left:
            self._left -= tensor.nbytes
            self._tensors[key] = tensor
        else:
            self._files[key] = self._write(tensor)

    def __getitem__(self, key: Key) -> Tensor:
        if key in self._tensors:
            return self._tensors[key]
        file = self._files[key]
        # Torch's own memory, as its alignment may decide how products round.
        found = torch.empty(file.shape, dtype=file.dtype)
        with file.path.open("rb") as stream:
            stream.readinto(found.flatten().view(torch.uint8).numpy().data)
        return found.to(self._device)

    def __delitem__(self, key: Key) -> None:
        if key in self._tensors:
            self._left += self._tensors.pop(key).nbytes
        else:
            self._files.pop(key).path.unlink()

    def __contains__(self, key: Key) -> bool:
        return key in self._tensors or key in self._files

    def pop(self, name: str, batch: int) -> Tensor:
        """Returns a tensor and gives up its room."""
        tensor = self[name, batch]
        del self[name, batch]
        return tensor

    def _write(self, tensor: Tensor) -> _File:
        try:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="hf_zip-")
            path = Path(self._folder.name) / str(self._written)
            self._written += 1
            path.write_bytes(tensor.cpu().flatten().view(torch.uint8).numpy().data)
        except OSError as error:
            raise HfZipError(
                f"{tensor.nbytes} bytes of the calibration set's streams could not be written to a "
                f"temporary file ({error}); free disk space, point TMPDIR to another disk, or let "
                "more be held in memory"
            ) from error
        return _File(path, tensor.shape, tensor.dtype)
