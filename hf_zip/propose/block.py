"""The roles of what one block holds: attention, MLP, normalisations and scales."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hf_zip.propose.survey import Survey, is_norm


@dataclass(frozen=True)
class BlockDraft:
    """What was found of the blocks.

    Args:
        fields: Entries of the table.
        open: What could not be decided, one sentence each.
    """

    fields: Mapping[str, Any]
    open: tuple[str, ...] = field(default=())


def draft_block(survey: Survey) -> BlockDraft:
    """Returns the entries of a table that describe one block."""
    linears, unsure = survey.linears(inside=True), list[str]()
    attention = _attention(survey, linears, unsure)
    rest = [name for name in linears if name not in attention.values()]
    mlp = _mlp(survey, rest, unsure)
    norms = survey.norms(inside=True)
    if len(norms) != 2:
        unsure.append(
            f"a block has {len(norms)} normalisations ({_listed(survey, norms)}), and a table "
            "describes two: the attention's and the MLP's"
        )
    query = attention.get("query")
    before = bool(query and norms and survey.seen[norms[0]].order < survey.seen[query].order)
    scales, biases = _parameters(survey, unsure)
    unsure += _differing(survey)
    if survey.runs > 1:
        unsure.append(
            f"the block runs {survey.runs} times in one forward, with the same parameters; "
            "statistics of its features are those of its last run"
        )
    found: dict[str, Any] = {
        **{role: _relative(survey, name) for role, name in {**attention, **mlp}.items()},
        "units": _units(survey, mlp, unsure),
        "score_biases": biases,
        "block_norms": tuple(_relative(survey, name) for name in norms),
        "block_scales": scales,
        "pre_norm": before,
    }
    key = attention.get("key")
    if key is not None:
        found["key_bias"] = survey.modules[key].bias is not None
    return BlockDraft(found, tuple(unsure))


def _attention(survey: Survey, linears: list[str], unsure: list[str]) -> dict[str, str]:
    """Query, key, value and output, told by what changing them changes."""
    three = _reading_alike(survey, linears)
    if not three:
        unsure.append(
            "no three linear layers of a block read the same features, as query, key and value do "
            f"({_listed(survey, linears)}); a fused layer has no place in a table"
        )
        return {}
    later = [name for name in linears if name not in three]
    output = next((n for n in later if all(survey.feeds(one, n) for one in three)), None)
    if output is None:
        unsure.append(f"nothing in a block reads what {_listed(survey, three)} give together")
        return {}
    before = survey.given(output)
    value = [n for n in three if torch.allclose(survey.changed(n, _doubled, output), 2 * before)]
    if len(value) != 1:
        unsure.append(f"which of {_listed(survey, three)} is the value was not told")
        return {}
    others = [name for name in three if name not in value]
    keys = [n for n in others if torch.allclose(survey.changed(n, _shifted, output), before)]
    if len(keys) != 1:
        keys = [name for name in others if "k" in name.rpartition(".")[2]][:1] or others[1:]
        unsure.append(
            f"a shift of all keys should leave the attention, but neither of "
            f"{_listed(survey, others)} does (positions may enter its scores); "
            f"{_relative(survey, keys[0])} is taken for the key by its name"
        )
    (query,) = (name for name in others if name not in keys)
    return {"query": query, "key": keys[0], "value": value[0], "output": output}


def _reading_alike(survey: Survey, linears: list[str]) -> list[str]:
    """The first three linear layers that read one tensor."""
    for name in linears:
        given = survey.seen[name].given
        alike = [other for other in linears if survey.seen[other].given is given]
        if len(alike) == 3:
            return alike
    return []


def _doubled(output: torch.Tensor) -> torch.Tensor:
    return 2 * output


def _shifted(output: torch.Tensor) -> torch.Tensor:
    steps = torch.arange(output.shape[-1], dtype=output.dtype, device=output.device)
    return output + torch.sin(steps)


def _mlp(survey: Survey, rest: list[str], unsure: list[str]) -> dict[str, str]:
    if len(rest) == 2:
        first, second = rest
        fits = survey.modules[first].out_features == survey.modules[second].in_features
        if fits and survey.feeds(first, second):
            return {"mlp_in": first, "mlp_out": second}
    unsure.append(
        "beside the attention a block has the linear layers "
        f"{_listed(survey, rest) or 'none'}, and a table describes an MLP of two, one after the "
        "other"
    )
    return {}


def _parameters(survey: Survey, unsure: list[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Scales of what is written to the stream, and what has a value per head."""
    block = survey.modules[survey.block]
    scales, biases = list[str](), dict[str, int]()
    heads = getattr(survey.base_config, "num_attention_heads", None)
    for name, parameter in block.named_parameters():
        owner = block.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, nn.Linear) or is_norm(owner):
            continue
        per_head = [dim for dim, size in enumerate(parameter.shape) if size == heads]
        if tuple(parameter.shape) == (survey.width,):
            scales.append(name)
        elif len(per_head) == 1 and parameter.dim() > 1:
            biases[name] = per_head[0]
        else:
            unsure.append(f"{name} of a block, of shape {tuple(parameter.shape)}, has no role")
    return tuple(scales), biases


def _differing(survey: Survey) -> list[str]:
    """What the first block has and another one lacks."""
    blocks = survey.modules[survey.layers]
    names = [{name for name, _ in block.named_parameters()} for block in blocks]
    own = [name for name in sorted(names[0]) if any(name not in other for other in names[1:])]
    return [f"only some blocks have {', '.join(own)}, which may be for all of them"] if own else []


def _units(survey: Survey, mlp: Mapping[str, str], unsure: list[str]) -> str:
    """The entry of the config that says how many hidden units the MLP has."""
    if not mlp:
        return "intermediate_size"
    units = survey.modules[mlp["mlp_in"]].out_features
    values = survey.base_config.to_dict()
    names = [name for name, value in values.items() if type(value) is int and value == units]
    if len(names) != 1:
        unsure.append(f"which entry of the config says that an MLP has {units} hidden units")
    return names[0] if names else "intermediate_size"


def _relative(survey: Survey, name: str) -> str:
    return name.removeprefix(f"{survey.block}.")


def _listed(survey: Survey, names: list[str]) -> str:
    return ", ".join(_relative(survey, name) for name in names)
