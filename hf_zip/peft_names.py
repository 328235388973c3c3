"""Adapters in the names that this version of transformers has for modules: keys and settings."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING
from peft.utils.other import get_pattern_key
from peft.utils.peft_types import PeftType
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming

# What stands before the names of a model's parameters in an adapter.
PREFIX = "base_model.model."


def renamed_keys(keys: Collection[str], model: PreTrainedModel) -> dict[str, str]:
    """Returns the keys of an adapter with the names that they have now.

    PEFT renames keys by itself, but not the modules that its settings name, so that both are
    renamed here.

    Args:
        keys: The keys in its file.
        model: A model of the class that it was trained on; its weights do not matter.
    """
    found = get_model_conversion_mapping(model, add_legacy=False)
    renamings = [change for change in found if isinstance(change, WeightRenaming)]

    def rename(key: str) -> str:
        if not key.startswith(PREFIX):
            return key
        name = key.removeprefix(PREFIX)
        for renaming in renamings:
            name, _ = renaming.rename_source_key(name)
        return PREFIX + name

    return {key: rename(key) for key in keys}


def renamed_settings(settings: Mapping[str, Any], renamed: Mapping[str, str]) -> PeftConfig:
    """Returns what makes PEFT put an adapter where its keys say.

    Args:
        settings: Its configuration as it was written.
        renamed: See `renamed_keys`.
    """
    kind = PeftType(settings["peft_type"])
    cls = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    values = {k: v for k, v in settings.items() if k in cls.__dataclass_fields__}
    if values.get("init_lora_weights") == "eva":  # needs data, and leaves the base as it is
        values["init_lora_weights"] = True
    config = cls(**{**values, "inference_mode": True})
    if all(old == new for old, new in renamed.items()):
        return config
    places = _places(renamed, f".{PEFT_TYPE_TO_PREFIX_MAPPING[kind]}")
    changes: dict[str, Any] = {"target_modules": sorted(places)}
    if getattr(config, "feedforward_modules", None):
        changes["feedforward_modules"] = _chosen(config.feedforward_modules, places)
    if config.modules_to_save:
        changes["modules_to_save"] = _saved(config.modules_to_save, renamed)
    for name in ("rank_pattern", "alpha_pattern"):
        changes[name] = _by_place(getattr(config, name, None) or {}, places)
    for name, value in changes.items():
        if hasattr(config, name):
            setattr(config, name, value)
    return config


def _places(renamed: Mapping[str, str], mark: str) -> dict[str, str]:
    """The modules that an adapter changes: their new names → their old ones."""
    pairs = ((old, new) for old, new in renamed.items() if mark in old)
    return {
        new.removeprefix(PREFIX).split(mark)[0]: old.removeprefix(PREFIX).split(mark)[0]
        for old, new in pairs
    }


def _chosen(chosen: str | Collection[str], places: Mapping[str, str]) -> list[str]:
    """The modules that a setting chose by their old names: a pattern, or how they end."""
    if isinstance(chosen, str):
        return sorted(new for new, old in places.items() if re.fullmatch(chosen, old))
    ends = tuple(f".{end}" for end in chosen)
    return sorted(new for new, old in places.items() if f".{old}".endswith(ends))


def _by_place(patterns: Mapping[str, int], places: Mapping[str, str]) -> dict[str, int]:
    """Ranks or scales that were given for patterns of old names, by new name."""
    keys = {new: get_pattern_key(patterns, old) for new, old in places.items()}
    return {re.escape(new): patterns[key] for new, key in keys.items() if key in patterns}


def _saved(names: Sequence[str], renamed: Mapping[str, str]) -> list[str]:
    """The new names of modules that an adapter holds whole; those that it does not hold stay."""
    found = {}
    for old, new in renamed.items():
        parts, others = (key.removeprefix(PREFIX).split(".") for key in (old, new))
        for name in names:
            wanted = name.split(".")
            for stop in range(len(wanted), len(parts)):
                if parts[stop - len(wanted) : stop] == wanted:
                    found[".".join(others[: len(others) - (len(parts) - stop)])] = name
    return [*found, *(name for name in names if name not in found.values())]
