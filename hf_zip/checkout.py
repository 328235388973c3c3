"""What a recipe calls a model → its folder on this machine, fetched from the Hub if need be."""

import re
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_zip.checkpoint import WEIGHTS
from hf_zip.errors import HfZipError, first_line
from hf_zip.peft_adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
_SAFE = (*WEIGHTS[:2], ADAPTER_WEIGHTS[0])
_PICKLES = (*WEIGHTS[2:], ADAPTER_WEIGHTS[1])
_TEXTS = ("*.json", "*.txt", "*.model", "README.md")


def checkout(
    reference: str,
    token: str | bool | None = None,
    allow_pickle: bool = False,
    hub: bool = False,
) -> tuple[Path, bool]:
    """Returns a checkpoint's folder, fetched from the Hub where there is none, and if it is local.

    Args:
        reference: A local folder or a Hub id, `org/name` or `org/name@revision`.
        token: Access token of the Hub; left out, the stored one.
        allow_pickle: Fetch weights in pickles where there are no others.
        hub: Take it for a Hub id, even where there is such a folder.

    Raises:
        HfZipError: There is no such folder or repository in reach.
    """
    folder = Path(reference).expanduser()
    if not hub and folder.exists():
        return folder, True
    folder = _fetch(reference, token, (*_SAFE, *_TEXTS))
    if allow_pickle and not any(found for kind in _SAFE for found in folder.glob(kind)):
        folder = _fetch(f"{reference.partition('@')[0]}@{folder.name}", token, _PICKLES)
    return folder, False


def checkout_adapter_config(reference: str, token: str | bool | None = None) -> tuple[Path, bool]:
    """Returns the folder with nothing but the configuration of an adapter, if it is one.

    Args:
        reference: See `checkout`.
        token: The same.

    Raises:
        HfZipError: There is no such folder or repository in reach.
    """
    folder = Path(reference).expanduser()
    if folder.exists():
        return folder, True
    return _fetch(reference, token, (ADAPTER_CONFIG,)), False


def split_reference(reference: str) -> tuple[str | None, str]:
    """Returns base and adapter of `base+adapter`, or nothing and what it is.

    Names of folders may have a plus in them, so that both sides should be a folder or a Hub id.

    Args:
        reference: What a recipe calls a model.
    """
    if Path(reference).expanduser().exists():
        return None, reference
    for found in re.finditer(r"\+", reference):
        sides = reference[: found.start()], reference[found.end() :]
        if all(Path(side).expanduser().is_dir() or _HUB_ID.fullmatch(side) for side in sides):
            return sides
    return None, reference


def is_hub_id(reference: str) -> bool:
    """Tells whether a text may be a Hub id."""
    return _HUB_ID.fullmatch(reference) is not None


def _fetch(reference: str, token: str | bool | None, files: tuple[str, ...]) -> Path:
    """Returns the folder of one commit in the Hub's cache, named by the commit."""
    if not is_hub_id(reference):
        raise HfZipError(
            f"{reference!r} is neither a folder nor a Hub id (org/name or org/name@revision); "
            "check the path"
        )
    repository, _, revision = reference.partition("@")
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision or None,
                token=token,
                allow_patterns=list(files),
                # Top level only: repositories keep old checkpoints and other formats in folders.
                ignore_patterns=["*/*"],
            )
        )
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
