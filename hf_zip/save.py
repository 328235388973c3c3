"""Folders out: written beside the target, checked by a reload, then renamed into place."""

import inspect
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from hf_zip.adapters import adapter_of, family, table_of
from hf_zip.errors import HfZipError, first_line
from hf_zip.learned import stored
from hf_zip.modeling import HfZipMembersModel, HfZipStackedModel
from hf_zip.probe import random_inputs

logger = logging.getLogger(__name__)

MARKER = "hf_zip_recipe.yaml"
# Where transformers begins another file of weights if nothing is said.
SHARD: str = inspect.signature(PreTrainedModel.save_pretrained).parameters["max_shard_size"].default


def save_checked(
    model: PreTrainedModel,
    folder: str | Path,
    processor: Any = None,
    files: Mapping[str, str | bytes] = {},
    max_shard_size: str = SHARD,
) -> Path:
    """Writes a model folder all at once, or not at all.

    The folder is written under another name beside the target, loaded again, and compared: no
    parameter may be missing or left over, and the outputs must be equal. Only then it takes the
    target's place. Whatever goes wrong before, the target stays as it was.

    Args:
        model: The model.
        folder: Where it should end; an older merge there is replaced.
        processor: Saved with the model.
        files: More files by name, texts or bytes.
        max_shard_size: Size of a file of weights beyond which another begins.

    Returns:
        The folder.

    Raises:
        HfZipError: The target holds something else than a merge, cannot be written, or the
            reloaded model differs.
    """
    target = Path(folder)
    check_replaceable(target)
    with staged(target) as staging:
        model.save_pretrained(staging, max_shard_size=max_shard_size)
        if processor is not None:
            processor.save_pretrained(staging)
        for name, content in files.items():
            (staging / name).write_bytes(_bytes(content))
        check_reload(model, staging)
    return target


def check_replaceable(target: Path) -> None:
    """Checks that a folder may be written, before any work is done.

    Raises:
        HfZipError: The target is a file, a folder that holds something else than a merge, or
            nothing can be written where it should be.
    """
    if target.is_file():
        raise HfZipError(f"{str(target)!r} is a file; give the name of a folder to write to")
    above = next(place for place in target.absolute().parents if place.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        reason = "cannot be written to" if above.is_dir() else "is a file"
        raise HfZipError(
            f"cannot write {str(target)!r}: {str(above)!r} {reason}; give another folder"
        )
    if target.is_dir() and any(target.iterdir()) and not (target / MARKER).is_file():
        raise HfZipError(
            f"{str(target)!r} is not empty and holds no {MARKER}, so it is not an earlier merge; "
            "it is left as it is. Give another folder, or empty this one"
        )


def check_reload(model: PreTrainedModel, folder: Path) -> None:
    """Checks that a saved folder loads as the model that was saved.

    Raises:
        HfZipError: A parameter is missing or left over, or the outputs differ.
    """
    reloaded, info = type(model).from_pretrained(
        folder,
        dtype=model.dtype,
        attn_implementation=model.config._attn_implementation,
        output_loading_info=True,
    )
    lost = {key: sorted(map(str, info[key])) for key in info if info[key]}
    if lost:
        raise HfZipError(f"the saved model does not load as it was: {lost}; nothing was replaced")
    found = stored(reloaded)
    changed = [n for n, x in stored(model).items() if not torch.equal(x.cpu(), found[n])]
    if changed:
        raise HfZipError(
            f"the saved parameters {', '.join(changed[:3])} differ from the model's; nothing was "
            "replaced"
        )
    inputs = _inputs(model)
    try:
        before = _output(model, inputs)
    except Exception as error:  # whatever a class makes of inputs that are not meant for it
        logger.info(
            "%s does not run on random inputs (%s); only its parameters are compared",
            type(model).__name__,
            first_line(error),
        )
        return
    after = _output(reloaded, inputs)
    # Equal parameters at other addresses may take another path through the linear algebra.
    tolerance = 1e3 * torch.finfo(model.dtype).eps * before.abs().max()
    if not (before - after).abs().max() <= tolerance:
        raise HfZipError(
            f"the reloaded model's outputs differ by up to {(before - after).abs().max():.3g}; "
            "nothing was replaced"
        )


def _inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    if isinstance(model, HfZipMembersModel):
        model = model.native(0)
    elif isinstance(model, HfZipStackedModel):
        model = model.shared
    if table_of(family(model.config)) is None:
        return random_inputs(model, 2, generator)
    config = getattr(model.config, "trunk_config", model.config)
    return adapter_of(model).inputs(config, 2, generator)


@torch.no_grad()
def _output(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    moved = {
        key: value.to(model.device, model.dtype if value.is_floating_point() else None)
        for key, value in inputs.items()
    }
    output = model.eval()(**moved)
    answers = output.get("outputs") or {"": output}  # by task, where there are several heads
    return torch.cat([answer[0].flatten() for answer in answers.values()]).cpu()


def write_file(path: Path, content: str | bytes) -> None:
    """Writes a file all at once: under another name first, then renamed into place."""
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        try:
            file.write(_bytes(content))
            file.close()
            Path(file.name).chmod(0o644)
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _bytes(content: str | bytes) -> bytes:
    return content.encode("utf-8") if isinstance(content, str) else content


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Yields a folder beside the target that takes its place if nothing is raised.

    Raises:
        HfZipError: The target cannot be written.
    """
    # Of a link, what it points to is replaced: the link says where the folder should lie.
    place = target.resolve() if target.is_symlink() else target
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _tidy(place)
        prefix = f".{place.name}.new-{os.getpid()}-"
        staging = Path(tempfile.mkdtemp(prefix=prefix, dir=place.parent))
    except OSError as error:
        raise HfZipError(f"cannot write {str(target)!r}: {error}; give another folder") from error
    try:
        yield staging
        staging.chmod(0o755)
        _exchange(staging, place)
    except (OSError, SafetensorError) as error:
        raise HfZipError(
            f"cannot write {str(target)!r}: {error}; what was there is left as it was"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _exchange(staging: Path, target: Path) -> None:
    """Puts the staged folder at the target; the old folder comes back if that fails."""
    if not target.exists():
        staging.rename(target)
        return
    old = target.with_name(f".{target.name}.old")
    target.rename(old)
    try:
        staging.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _tidy(target: Path) -> None:
    """Removes what runs that were killed left behind, and brings back an old folder they moved."""
    old = target.with_name(f".{target.name}.old")
    if old.is_dir():
        if target.exists():
            shutil.rmtree(old)
        else:
            old.rename(target)
    for staging in target.parent.glob(f".{target.name}.new-*"):
        pid = staging.name.removeprefix(f".{target.name}.new-").split("-")[0]
        if pid.isdigit() and not _runs(int(pid)):
            shutil.rmtree(staging, ignore_errors=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's process
        return True
    return True
