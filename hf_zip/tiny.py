"""A tiny, randomly initialised model of any class: its config with small numbers."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

# Widths that a model tells apart are different here, so that a shape says what it carries.
_SIZES = {
    "hidden_size": 12,
    "d_model": 12,
    "dim": 12,
    "pooler_hidden_size": 12,
    "embed_dim": 8,
    "embedding_size": 8,
    "intermediate_size": 20,
    "hidden_dim": 20,
    "d_ff": 20,
    "d_kv": 4,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "n_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 4,
    "num_heads": 3,
    "n_heads": 3,
    "vocab_size": 31,
    "max_position_embeddings": 17,
    "max_relative_positions": 17,
    "projection_dim": 10,
    "projection_size": 12,
    "image_size": 8,
    "patch_size": 4,
    "num_mel_bins": 16,
    "max_length": 24,
    "frequency_stride": 8,
    "time_stride": 8,
    "window_size": 2,
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 14,
}
_LISTS = {
    "hidden_sizes": [6, 8, 10, 12],
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 4, 8],
    "conv_dim": [8, 8],
    "conv_kernel": [4, 3],
    "conv_stride": [2, 2],
}
# They name blocks by number, and follow from how many there are.
_FOLLOWING = ("layer_types", "out_features", "out_indices", "stage_names")
# Smaller images would vanish on their way through the stages of a hierarchy.
_OF_STAGES = {"image_size": 32, "patch_size": 2}


def tiny(cls: type[PreTrainedModel], config: PretrainedConfig | None = None) -> PreTrainedModel:
    """Returns a small model of a class, in evaluation mode and float32.

    Widths, numbers of blocks and sizes of inputs are small, whatever the config says; what else
    decides how the model computes stays.

    Args:
        cls: The class.
        config: Its config, left unchanged; left out, the class's defaults.
    """
    small = cls.config_class(**tiny_values(config or cls.config_class()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = cls(small)
    return model.float().eval()


def tiny_values(config: PretrainedConfig) -> dict[str, Any]:
    """Returns what a config holds, with small numbers."""
    # Some families give their sizes names of their own.
    renamed = config.attribute_map.items()
    own = {name: _SIZES[known] for known, name in renamed if known in _SIZES}
    return _shrunk(config.to_dict(), {**own, **_SIZES})


def _shrunk(values: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """What a config holds, with small numbers, as what its parts hold."""
    if isinstance(values.get("depths"), list):
        sizes = {**sizes, **_OF_STAGES}
    shrunk: dict[str, Any] = {}
    for name, value in values.items():
        if name in _FOLLOWING:
            continue
        if isinstance(value, dict) and name.endswith("_config"):
            value = _shrunk(value, _SIZES)
        elif isinstance(value, list | tuple):
            value = _LISTS.get(name, value)[: len(value)]
        elif type(value) is int and value > 0:
            small = sizes["vocab_size"] - 1 if name.endswith("_token_id") else sizes.get(name)
            value = value if small is None else min(value, small)
        shrunk[name] = value
    return shrunk
