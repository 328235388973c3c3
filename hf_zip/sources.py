"""Checkpoints in: loaded by `from_pretrained` in float32, checked, resolved."""

import copy
import dataclasses
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from httpx2 import HTTPError
from huggingface_hub import metadata_load, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import PreTrainedModel

from hf_zip.checkpoint import (
    WEIGHTS,
    check_finite,
    digest,
    load_model,
    load_processor,
    weight_files,
)
from hf_zip.errors import HfZipError, first_line
from hf_zip.licenses import License
from hf_zip.recipe import ModelSpec

logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True)
class Source:
    """One model to merge, loaded.

    Args:
        reference: What the recipe calls it: a folder, a Hub id, or a made-up name in memory.
        model: The model, in float32 (float64 where it came so in memory, and as asked for where
            `load_source` was) and evaluation mode.
        task: The task given in the recipe, if any.
        name: Short name: the folder's or the repository's.
        processor: Its image processor or tokenizer, or one of both, if it has one.
        revision: The resolved commit on the Hub; nothing for a folder.
        sha256: Digest of its weight file, or of the list of digests of several; for a folder.
        license: The licence its model card states, if any.
    """

    reference: str
    model: PreTrainedModel
    task: str | None = None
    name: str = ""
    processor: Any = None
    revision: str | None = None
    sha256: str | None = None
    license: License | None = None

    @property
    def architecture(self) -> str:
        """Name of the model's class."""
        return type(self.model).__name__


def load_sources(
    specs: Sequence[ModelSpec], token: str | bool | None = None, allow_pickle: bool = False
) -> tuple[Source, ...]:
    """Returns the models of a recipe, loaded, in its order and with unique names.

    Args:
        specs: The models, as a recipe lists them.
        token: Access token of the Hub; left out, the stored one.
        allow_pickle: See `load_source`.

    Raises:
        HfZipError: See `load_source`.
    """
    return with_unique_names(
        [load_source(spec.model, spec.task, token, allow_pickle=allow_pickle) for spec in specs]
    )


def load_source(
    reference: str,
    task: str | None = None,
    token: str | bool | None = None,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    allow_pickle: bool = False,
) -> Source:
    """Returns one model from a folder or from the Hub, with what comes along with it.

    The model has the class that its config names. Everything comes from one commit, and nothing of
    the checkpoint may be left over or made up.

    Args:
        reference: A local folder or a Hub id, `org/name` or `org/name@revision`.
        task: The task the model was trained on.
        token: Access token of the Hub; left out, the stored one.
        dtype: Precision of the parameters; "auto" is that of the checkpoint.
        allow_pickle: Read weights in pickles (`pytorch_model.bin`) where there are no others.

    Raises:
        HfZipError: There is no such folder or repository in reach; it holds no model, or one of a
            class that transformers does not know; a weight is missing, left over, of another shape
            or not finite; a file of it cannot be read, or is not to be trusted (`hf_zip.trust`).
    """
    folder, local = checkout(reference, token, allow_pickle)
    files = weight_files(folder, reference, allow_pickle)
    model = load_model(folder, files, reference, dtype)
    return Source(
        reference=reference,
        model=model,
        task=task,
        name=folder.resolve().name if local else reference.partition("@")[0].rpartition("/")[2],
        processor=load_processor(folder, reference, model.input_modalities),
        revision=None if local else folder.name,
        sha256=digest(files) if local else None,
        license=card_license(folder / "README.md"),
    )


def checkout(
    reference: str, token: str | bool | None = None, allow_pickle: bool = False
) -> tuple[Path, bool]:
    """Returns a checkpoint's folder, fetched from the Hub where there is none, and if it is local.

    Args:
        reference: See `load_source`, as for the other arguments.
        token: The same.
        allow_pickle: The same.

    Raises:
        HfZipError: There is no such folder or repository in reach.
    """
    folder = Path(reference).expanduser()
    if folder.exists():
        return folder, True
    return _download(reference, token, allow_pickle), False


def from_model(
    model: Any, task: str | None = None, name: str = "model", processor: Any = None
) -> Source:
    """Returns a copy of a model in memory as a source; the model itself is left as it is.

    Args:
        model: A transformers model.
        task: The task it was trained on.
        name: What to call it.
        processor: Its image processor or tokenizer.

    Raises:
        HfZipError: It is not a transformers model, or a weight is absent or not finite.
    """
    if not isinstance(model, PreTrainedModel):
        raise HfZipError(
            f"{name!r} is a {type(model).__name__}, but should be a transformers PreTrainedModel "
            "(of a PEFT model, give what merge_and_unload() returns)"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise HfZipError(f"{name!r} has parameters on the meta device; load its weights first")
    dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
    copied = copy.deepcopy(model).to("cpu", dtype).eval()
    check_finite(copied, name)
    return Source(reference=name, model=copied, task=task, name=name, processor=processor)


def with_unique_names(sources: Sequence[Source]) -> tuple[Source, ...]:
    """Returns the sources, later ones of the same name renamed to `name-2`, `name-3` and so on."""
    given = [source.name for source in sources]
    names: list[str] = []
    for name in given:
        unique, count = name, 1
        while unique in names or (count > 1 and unique in given):
            count += 1
            unique = f"{name}-{count}"
        names.append(unique)
    return tuple(
        dataclasses.replace(source, name=name) for source, name in zip(sources, names, strict=True)
    )


def _download(reference: str, token: str | bool | None, allow_pickle: bool) -> Path:
    """Returns the folder of one commit in the Hub's cache, named by the commit."""
    if not _HUB_ID.fullmatch(reference):
        raise HfZipError(
            f"{reference!r} is neither a folder nor a Hub id (org/name or org/name@revision); "
            "check the path"
        )
    repository, _, revision = reference.partition("@")

    def fetch(commit: str | None, *files: str) -> Path:
        # Top level only: repositories keep old checkpoints and other formats in folders.
        return Path(
            snapshot_download(
                repository,
                revision=commit,
                token=token,
                allow_patterns=list(files),
                ignore_patterns=["*/*"],
            )
        )

    try:
        folder = fetch(revision or None, *WEIGHTS[:2], "*.json", "*.txt", "*.model", "README.md")
        if allow_pickle and not any(folder.glob("model*.safetensors")):
            folder = fetch(folder.name, *WEIGHTS[2:])
    except RevisionNotFoundError as error:
        raise HfZipError(
            f"{repository!r} has no revision {revision!r} on the Hub; give a branch, a tag or a "
            "commit that it has"
        ) from error
    except GatedRepoError as error:
        raise HfZipError(
            f"{repository!r} is gated; accept its conditions at https://huggingface.co/"
            f"{repository} and log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise HfZipError(
            f"{reference!r} is neither a folder nor a repository on the Hub that you may read; "
            "check the spelling, and log in with `hf auth login` if it is private"
        ) from error
    except (OSError, ValueError, HTTPError) as error:
        raise HfZipError(
            f"{reference!r} is not a folder, and as a Hub id it is neither in reach nor in the "
            f"cache: {first_line(error)}. Check the path or the connection"
        ) from error
    return folder


def card_license(card: Path) -> License | None:
    """Returns the licence that a model card states; nothing where it states none."""
    try:
        data = metadata_load(card) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        logger.debug("no licence read from %s: %s", card, error)
        return None
    found: Any = data.get("license")
    if isinstance(found, list):
        found = ", ".join(map(str, found))
    if not found:
        return None
    own = data.get("license_name") if found == "other" else None
    link = data.get("license_link")
    return License(str(own or found), own is None, str(link) if link else None)
