"""A drafted table → the Python file of an adapter."""

from collections.abc import Mapping, Sequence
from pprint import pformat
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from hf_zip.adapters import Pooler
from hf_zip.errors import HfZipError

_DEFAULTS = {
    "embedding_output": "embeddings",
    "units": "intermediate_size",
    "pre_norm": True,
    "key_bias": True,
    "head_parts": 1,
}
# In the order of the fields of `Adapter`; left out where they are empty or the default.
_FIELDS = (
    "base",
    "embeddings",
    "embedding_norms",
    "embedding_projection",
    "embedding_output",
    "layers",
    "norms",
    "readers",
    "poolers",
    "outputs",
    "query",
    "key",
    "value",
    "output",
    "mlp_in",
    "mlp_out",
    "units",
    "score_biases",
    "block_norms",
    "block_scales",
    "pre_norm",
    "key_bias",
    "heads",
    "head_parts",
)
_RANDOM: dict[tuple[str, ...], tuple[str, str]] = {
    ("pixel_values",): ("from hf_zip.adapters.vit import random_images", "random_images"),
    ("input_ids",): ("from hf_zip.adapters.bert import random_text", "random_text"),
}
_SOUNDS = '''

def random_sounds(
    config: PretrainedConfig, batch: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Returns standard normal {what}, `{shape}`."""
    shape = (batch, {sizes})
    return {{"input_values": torch.randn(shape, generator=generator)}}
'''


def adapter_source(
    model: PreTrainedModel,
    fields: Mapping[str, Any],
    given: Sequence[str],
    config: Mapping[str, Any],
) -> str:
    """Returns the Python file of a table.

    Args:
        model: The example model.
        fields: The entries of the table.
        given: The arguments that the model takes, as they were made up.
        config: What the example's config is made of.

    Raises:
        HfZipError: It takes what no function here makes up.
    """
    cls, kind = type(model).__name__, type(model.config).__name__
    name = str(model.config.model_type)
    imports, inputs, function = _random(given, model.config)
    entries = [
        ("name", name.replace("-", "_")),
        ("model_types", (name,)),
        ("example", _Name("example")),
        ("inputs", _Name(inputs)),
        *((key, fields[key]) for key in _FIELDS if _needed(key, fields.get(key))),
    ]
    used = {kind, cls, "PretrainedConfig"} if function else {kind, cls}
    pooler = ", Pooler" if fields.get("poolers") else ""
    return "\n".join(
        (
            f'"""{cls.removesuffix("Model")}: a draft; say here what the family is."""',
            "",
            *(("import torch", "from torch import Tensor") if function else ()),
            f"from transformers import {', '.join(sorted(used))}",
            "",
            f"from hf_zip.adapters import Adapter{pooler}",
            *((imports,) if imports else ()),
            "",
            "",
            f"def example() -> {cls}:",
            '    """Returns a small model whose stream, heads and MLP have different sizes."""',
            f"    config = {kind}(",
            *(f"        {key}={_plain(value)}," for key, value in config.items()),
            "    )",
            f"    return {cls}(config)",
            *((function.rstrip(),) if function else ()),
            "",
            "",
            "ENTRY = Adapter(",
            *(f"    {key}={_literal(value)}," for key, value in entries),
            ")",
            "",
        )
    )


def _plain(value: Any) -> str:
    return pformat(value, width=80, sort_dicts=False).replace("\n", "\n        ")


class _Name(str):
    """A name in the file, not a text."""


def _needed(key: str, value: Any) -> bool:
    if value is None or (value in ("", (), {}) and key not in _DEFAULTS):
        return False
    return key not in _DEFAULTS or value != _DEFAULTS[key]


def _literal(value: Any) -> str:
    """A value of the table as source text, long ones over several lines."""
    if isinstance(value, Pooler):
        return _pooler(value)
    if isinstance(value, Mapping):
        return _wrapped("{", [f"{_literal(key)}: {dim}" for key, dim in value.items()], "}")
    if isinstance(value, tuple):
        return _wrapped("(", [_literal(item) for item in value], ",)" if len(value) == 1 else ")")
    if isinstance(value, str) and not isinstance(value, _Name):
        return f'"{value}"'
    return str(value)


def _wrapped(left: str, rows: Sequence[str], right: str) -> str:
    line = f"{left}{', '.join(rows)}{right}"
    if len(line) <= 70:
        return line
    body = "".join(f"        {row},\n" for row in rows)
    return f"{left}\n{body}    {right.removeprefix(',')}"


def _pooler(pooler: Pooler) -> str:
    parts = [_literal(pooler.dense), f"readers={_literal(pooler.readers)}"]
    parts += [f"norms={_literal(pooler.norms)}"] if pooler.norms else []
    line = f"Pooler({', '.join(parts)})"
    if len(line) <= 80:
        return line
    body = "".join(f"            {part},\n" for part in parts)
    return f"Pooler(\n{body}        )"


def _random(given: Sequence[str], config: PretrainedConfig) -> tuple[str, str, str]:
    """How the table makes random inputs: an import, a name, and a function where there is none."""
    if tuple(given) in _RANDOM:
        return (*_RANDOM[tuple(given)], "")
    if tuple(given) != ("input_values",):
        raise HfZipError(
            f"models that take {' and '.join(given)} are not drafted; write the table by hand, "
            "like hf_zip/adapters/vit.py"
        )
    bins = getattr(config, "num_mel_bins", None)
    what = ("spectrograms", "[batch, frames, bins]", "config.max_length, config.num_mel_bins")
    if not bins:
        what = ("sounds", "[batch, samples]", "2000")
    names = dict(zip(("what", "shape", "sizes"), what, strict=True))
    return "", "random_sounds", _SOUNDS.format(**names)
