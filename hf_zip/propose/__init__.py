"""`hf-zip inspect --propose`: a family's table, drafted by probing small random models of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from hf_zip.adapters import Adapter, Pooler
from hf_zip.errors import HfZipError, first_line
from hf_zip.probe import random_inputs
from hf_zip.propose.block import draft_block
from hf_zip.propose.family import classes_of, random_model
from hf_zip.propose.law import check_table, has_answers
from hf_zip.propose.outside import OutsideDraft
from hf_zip.propose.source import adapter_source
from hf_zip.propose.survey import Survey
from hf_zip.tiny import tiny_values

_ROLES = ("query", "key", "value", "output", "mlp_in", "mlp_out")
_BOOKKEEPING = (
    "_name_or_path",  # where somebody keeps the model
    "architectures",
    "dtype",
    "transformers_version",
    "id2label",
    "label2id",
)


@dataclass(frozen=True)
class Proposal:
    """A drafted table.

    Args:
        source: The Python file, with what is known and what is not as comments on top.
        verified: Classes that the table covers, and where the law holds.
        failed: What is wrong for the other classes, by class.
        open: What could not be decided, one sentence each.
    """

    source: str
    verified: tuple[str, ...]
    failed: Mapping[str, str]
    open: tuple[str, ...]


def propose(reference: str) -> Proposal:
    """Returns a draft of the table of a model's family.

    Args:
        reference: A folder or a Hub id; only its config is read.

    Raises:
        HfZipError: There is no such config, or no draft can be made of its models.
    """
    try:
        config = AutoConfig.from_pretrained(reference, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise HfZipError(f"no config of {reference!r} can be read: {first_line(error)}") from error
    return propose_for(config)


def propose_for(config: PretrainedConfig) -> Proposal:
    """Returns a draft of the table of a config's family, from all its classes that are known here.

    Args:
        config: Its sizes do not matter.

    Raises:
        HfZipError: No draft can be made of its models.
    """
    surveys, left_out = _surveys(config)
    if not surveys:
        reason = next(iter(left_out.values()), None)
        raise HfZipError(reason or f"transformers has no encoder of type {config.model_type!r}")
    fields, unsure = _draft(surveys)
    unsure += [f"{name} was left out: {reason}" for name, reason in left_out.items()]
    models = [survey.model for survey in surveys]
    failed = _failures(fields, models)
    names = [type(model).__name__ for model in models]
    verified = tuple(name for name in names if name not in failed and _TABLE not in failed)
    example = next((model for model in models if has_answers(model)), models[0])
    given = list(random_inputs(example, 1, torch.Generator()))
    body = adapter_source(example, fields, given, _example_values(example, config))
    unsure = list(dict.fromkeys(unsure))
    return Proposal(f"{_comments(verified, failed, unsure)}{body}", verified, failed, tuple(unsure))


def _surveys(config: PretrainedConfig) -> tuple[list[Survey], dict[str, str]]:
    """What one forward of each class shows, and why some classes have none."""
    surveys, left_out = list[Survey](), dict[str, str]()
    for cls in classes_of(config):
        try:
            surveys.append(Survey(random_model(cls, config)))
        except HfZipError as error:
            left_out[cls.__name__] = str(error)
    return surveys, left_out


def _draft(surveys: Sequence[Survey]) -> tuple[dict[str, Any], list[str]]:
    """The fields of the table, and what could not be decided."""
    first = surveys[0]
    block, outside = draft_block(first), OutsideDraft()
    for survey in surveys:
        outside.add(survey)
    poolers = {dense: parts for dense, parts in outside.poolers.items() if parts[0]}
    base = [survey.base for survey in surveys if survey.base != survey.usual_base]
    fields = {
        "base": next(iter(base), "").removesuffix("."),
        "embeddings": outside.embeddings,
        "embedding_norms": tuple(outside.embedding_norms),
        "embedding_projection": outside.embedding_projection,
        "embedding_output": outside.embedding_output,
        "layers": first.short(first.layers),
        "norms": tuple(outside.norms),
        "readers": tuple(
            name for name in outside.readers if name not in (*poolers, *outside.heads)
        ),
        "poolers": tuple(
            Pooler(dense, tuple(readers), tuple(norms))
            for dense, (readers, norms) in poolers.items()
        ),
        "outputs": tuple(outside.outputs),
        **block.fields,
        "heads": tuple(outside.heads),
        "head_parts": outside.head_parts,
    }
    return fields, [*block.open, *outside.open]


_TABLE = "the table"


def _failures(fields: Mapping[str, Any], models: Sequence[PreTrainedModel]) -> dict[str, str]:
    """What is wrong with a draft, by class; or with all of it."""
    missing = [role for role in _ROLES if not fields.get(role)]
    if missing:
        return {_TABLE: f"it lacks {', '.join(missing)}"}
    adapter = Adapter(
        name="the draft",
        model_types=(),
        example=lambda: models[0],
        inputs=lambda config, batch, generator: random_inputs(models[0], batch, generator),
        **fields,
    )
    found = {type(model).__name__: check_table(model, adapter) for model in models}
    return {name: problem for name, problem in found.items() if problem}


def _example_values(model: PreTrainedModel, config: PretrainedConfig) -> dict[str, Any]:
    """What the config of the example says beyond the defaults of its class."""
    defaults = type(model).config_class().to_dict()
    return {**_beyond(tiny_values(config), defaults), "num_labels": 5}


def _beyond(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Values that are not the defaults, of the parts of a config part by part."""
    changed = {}
    for key, value in values.items():
        usual = defaults.get(key)
        # Some configs hold what no argument can be called.
        if key in _BOOKKEEPING or not key.isidentifier() or (key in defaults and value == usual):
            continue
        parts = key.endswith("_config") and isinstance(value, dict)
        changed[key] = _beyond(value, usual or {}) if parts else value
    return changed


def _comments(verified: Sequence[str], failed: Mapping[str, str], unsure: Sequence[str]) -> str:
    law = "covered, and permuting every group leaves what it computes"
    lines = [f"# Verified, {name}: {law}." for name in verified]
    lines += [f"# NOT verified, {name}: {problem}." for name, problem in failed.items()]
    lines += [f"# Not decided: {sentence}." for sentence in unsure]
    lines.append(
        "# What no draft can tell: whether blocks can be shared in part (partial), and the other "
        "model types\n# of the family."
    )
    return "\n".join((*lines, ""))
