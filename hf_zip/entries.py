"""Entries of a config by name, also those of the config of a part: "vision_config.hidden_size"."""

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig


def set_entries(config: PretrainedConfig, values: Mapping[str, Any]) -> None:
    """Gives a config other values.

    Args:
        config: The config; changed in place.
        values: Values by name; what is before a dot is the entry that holds a part's config.
    """
    for name, value in values.items():
        *parts, last = name.split(".")
        place: Any = config
        for part in parts:
            place = getattr(place, part)
        setattr(place, last, value)
