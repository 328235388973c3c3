"""A LoRA out: a folder as PEFT writes it, proved by putting it on its base again."""

import copy
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_zip.checkout import checkout
from hf_zip.checkpoint import quiet
from hf_zip.errors import HfZipError, first_few, first_line
from hf_zip.extraction import Extraction
from hf_zip.learned import learned
from hf_zip.peft_adapter import MERGED_CONFIG
from hf_zip.peft_merge import task_type_of
from hf_zip.save import check_replaceable, staged


@dataclass(frozen=True)
class MergedAdapter:
    """An adapter that a merge is written as.

    Args:
        extraction: What it is made of.
        base: What it is an adapter of, a folder or a Hub id.
        revision: The resolved commit on the Hub; nothing for a folder.
        dtype: Precision of its weights.
    """

    extraction: Extraction
    base: str
    revision: str | None
    dtype: torch.dtype


def save_adapter(
    model: PreTrainedModel,
    adapter: MergedAdapter,
    folder: str | Path,
    processor: Any = None,
    files: Mapping[str, str | bytes] = {},
) -> Path:
    """Writes an adapter's folder all at once, or not at all.

    It is written under another name, put on its base by PEFT, and compared with the model; only
    then it takes the target's place.

    Args:
        model: What base and adapter make together.
        adapter: The adapter.
        folder: Where it should end; an older merge there is replaced.
        processor: Saved with the adapter.
        files: More files by name, texts or bytes.

    Returns:
        The folder.

    Raises:
        HfZipError: The target holds something else than a merge, cannot be written, or base and
            adapter do not give the model.
    """
    target = Path(folder)
    check_replaceable(target)
    with staged(target) as staging:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PEFT, on what it finds unusual
            _wrapped(model, adapter).save_pretrained(staging, save_embedding_layers=False)
        with tempfile.TemporaryDirectory(dir=staging) as place:
            model.config.save_pretrained(place)
            (Path(place) / "config.json").rename(staging / MERGED_CONFIG)
        if processor is not None:
            processor.save_pretrained(staging)
        for name, content in files.items():
            data = content.encode("utf-8") if isinstance(content, str) else content
            (staging / name).write_bytes(data)
        check_adapter(model, adapter, staging)
    return target


def check_adapter(model: PreTrainedModel, adapter: MergedAdapter, folder: Path) -> None:
    """Checks that a base with the adapter in a folder is a model.

    Args:
        model: What they should make together.
        adapter: What was written.
        folder: Where it is.

    Raises:
        HfZipError: They do not.
    """
    place = f"{adapter.base}@{adapter.revision}" if adapter.revision else adapter.base
    origin, _ = checkout(place)
    with quiet(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        try:
            base = type(model).from_pretrained(
                origin,
                config=copy.deepcopy(model.config),
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
            )
            found: Any = PeftModel.from_pretrained(base, folder).merge_and_unload()
        except Exception as error:  # whatever a folder that is not right makes PEFT raise
            raise HfZipError(
                f"the adapter does not load on {adapter.base!r}: {type(error).__name__}: "
                f"{first_line(error)}; nothing was replaced"
            ) from error
    reloaded, own = learned(found), learned(model)
    wrong = [name for name in own if name not in reloaded or not _alike(own[name], reloaded[name])]
    if wrong:
        raise HfZipError(
            f"{adapter.base!r} with the adapter differs from the merge in {first_few(wrong, 3)}; "
            "nothing was replaced. The base should be the one that the merge was made with"
        )


def _alike(first: Tensor, second: Tensor) -> bool:
    """Whether parameters are the same up to the order of sums."""
    first, second = first.float(), second.float()
    return bool((first - second).abs().max() <= 1e-5 * first.abs().max() + 1e-7)


@torch.no_grad()
def _wrapped(model: PreTrainedModel, adapter: MergedAdapter) -> PeftModel:
    """The model as PEFT holds one with an adapter; the weights below the adapter do not matter."""
    extraction = adapter.extraction
    settings = LoraConfig(
        r=extraction.rank,
        lora_alpha=extraction.rank,
        target_modules=[*extraction.factors],
        modules_to_save=[*extraction.whole] or None,
        bias="all" if extraction.biases else "none",
        task_type=task_type_of(model),
        base_model_name_or_path=adapter.base,
        revision=adapter.revision,
        init_lora_weights=False,
    )
    with torch.random.fork_rng(devices=[]):
        wrapped: Any = get_peft_model(copy.deepcopy(model), settings, revision=adapter.revision)
    settings.base_model_name_or_path = adapter.base
    settings.init_lora_weights = True
    for name, product in extraction.factors.items():
        layer: Any = wrapped.base_model.model.get_submodule(name)
        if isinstance(layer.get_base_layer(), nn.Embedding):
            left, right = layer.lora_embedding_B["default"], layer.lora_embedding_A["default"]
        else:
            left, right = layer.lora_B["default"].weight, layer.lora_A["default"].weight
        left.zero_()[:, : product.rank] = product.left
        right.zero_()[: product.rank] = product.right
    return wrapped.to(adapter.dtype)
