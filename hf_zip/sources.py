"""Checkpoints in: loaded by `from_pretrained` in float32, checked, resolved."""

import copy
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from huggingface_hub import metadata_load
from transformers import PreTrainedModel

from hf_zip.checkout import checkout, checkout_adapter_config, is_hub_id, split_reference
from hf_zip.checkpoint import check_finite, digest, load_model, load_processor, weight_files
from hf_zip.errors import HfZipError
from hf_zip.licenses import License
from hf_zip.peft_adapter import is_adapter, named_base, read_adapter
from hf_zip.peft_merge import load_adapted
from hf_zip.recipe import ModelSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdapterBase:
    """The model that a PEFT adapter was merged into when it was loaded.

    Args:
        reference: What the recipe or the adapter calls it: a folder or a Hub id.
        revision: The resolved commit on the Hub; nothing for a folder.
        sha256: Digest of its weights, as of a source; for a folder.
        license: The licence its model card states, if any.
    """

    reference: str
    revision: str | None = None
    sha256: str | None = None
    license: License | None = None


@dataclass(frozen=True)
class Source:
    """One model to merge, loaded.

    Args:
        reference: What the recipe calls it: a folder, a Hub id, or a made-up name in memory; of
            `base+adapter` the adapter.
        model: The model, in float32 (float64 where it came so in memory, and as asked for where
            `load_source` was) and evaluation mode.
        task: The task given in the recipe, if any.
        name: Short name: the folder's or the repository's.
        processor: Its image processor or tokenizer, or one of both, if it has one.
        revision: The resolved commit on the Hub; nothing for a folder.
        sha256: Digest of its weight file, or of the list of digests of several; for a folder.
        license: The licence its model card states, if any.
        adapter_base: Of a PEFT adapter, what it was merged into; the fields above are its own.
    """

    reference: str
    model: PreTrainedModel
    task: str | None = None
    name: str = ""
    processor: Any = None
    revision: str | None = None
    sha256: str | None = None
    license: License | None = None
    adapter_base: AdapterBase | None = None

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
    the checkpoint may be left over or made up. A PEFT adapter is merged into its base, exactly.

    Args:
        reference: A local folder or a Hub id, `org/name` or `org/name@revision`, of a model or of
            an adapter; or `base+adapter`, where the adapter's own word for its base does not hold.
        task: The task the model was trained on.
        token: Access token of the Hub; left out, the stored one.
        dtype: Precision of the parameters; "auto" is that of the checkpoint.
        allow_pickle: Read weights in pickles (`pytorch_model.bin`) where there are no others.

    Raises:
        HfZipError: There is no such folder or repository in reach; it holds no model, or one of a
            class that transformers does not know; a weight is missing, left over, of another shape
            or not finite; a file of it cannot be read, or is not to be trusted (`hf_zip.trust`); an
            adapter cannot be merged into its base.
    """
    base, reference = split_reference(reference)
    folder, local = checkout(reference, token, allow_pickle)
    if base is not None or is_adapter(folder):
        found = _adapted(reference, (folder, local), base, token, allow_pickle)
        model = found.model if dtype == "auto" else found.model.to(dtype)
        return dataclasses.replace(found, model=model, task=task)
    files = weight_files(folder, reference, allow_pickle)
    model = load_model(folder, files, reference, dtype)
    return Source(
        reference=reference,
        model=model,
        task=task,
        name=short_name(reference, folder, local),
        processor=load_processor(folder, reference, model.input_modalities),
        revision=None if local else folder.name,
        sha256=digest(files) if local else None,
        license=card_license(folder / "README.md"),
    )


def _adapted(
    reference: str,
    found: tuple[Path, bool],
    base: str | None,
    token: str | bool | None,
    allow_pickle: bool,
) -> Source:
    """Returns an adapter in its base, with a processor of its own or that of the base."""
    folder, local = found
    adapter = read_adapter(folder, reference, allow_pickle)
    hub = base is None and not local
    origin = base or _named_base(folder, reference, local)
    base_folder, base_local = checkout(origin, token, allow_pickle, hub=hub)
    files = weight_files(base_folder, origin, allow_pickle)
    model = load_adapted(adapter, base_folder, files, origin)
    takes = model.input_modalities
    processor = load_processor(folder, reference, takes)
    return Source(
        reference=reference,
        model=model,
        name=short_name(reference, folder, local),
        processor=load_processor(base_folder, origin, takes) if processor is None else processor,
        revision=None if local else folder.name,
        sha256=digest([adapter.file]) if local else None,
        license=card_license(folder / "README.md"),
        adapter_base=AdapterBase(
            reference=origin,
            revision=None if base_local else base_folder.name,
            sha256=digest(files) if base_local else None,
            license=card_license(base_folder / "README.md"),
        ),
    )


def _named_base(folder: Path, reference: str, local: bool) -> str:
    """Returns the base that an adapter names, if that can be found."""
    named = named_base(folder, reference)
    if not is_hub_id(named) and not (local and Path(named).expanduser().is_dir()):
        raise HfZipError(
            f"{reference!r} is an adapter of {named!r}, which is "
            f"{'no folder here and no Hub id' if local else 'no Hub id'}; give base+adapter, such "
            f"as 'org/base+{reference}'"
        )
    return named


def shared_base(references: Sequence[str], token: str | bool | None = None) -> str | None:
    """Returns the model that all of some models are adapters of; nothing where they are not.

    Nothing is fetched but the configurations of adapters.

    Args:
        references: What a recipe calls the models.
        token: Access token of the Hub; left out, the stored one.

    Raises:
        HfZipError: A model is not in reach, or an adapter's base is not known.
    """
    found = []
    for name in references:
        base, reference = split_reference(name)
        if base is None:
            folder, local = checkout_adapter_config(reference, token)
            if not is_adapter(folder):
                return None
            base = _named_base(folder, reference, local)
        found.append(base)
    return found[0] if len({*found}) == 1 else None


def pinned(reference: str, revision: str | None) -> str:
    """Returns what loads the same commit again; of a folder, the folder.

    Args:
        reference: A folder, or a Hub id with or without a revision.
        revision: The commit that it was resolved to; nothing for a folder.
    """
    return f"{reference.partition('@')[0]}@{revision}" if revision else reference


def short_name(reference: str, folder: Path, local: bool) -> str:
    """Returns what a source is called: its folder or its repository.

    Args:
        reference: What the recipe calls it.
        folder: Where it lies.
        local: Whether it is a folder, not from the Hub.
    """
    return folder.resolve().name if local else reference.partition("@")[0].rpartition("/")[2]


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
