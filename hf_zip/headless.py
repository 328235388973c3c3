"""Models whose heads cannot stand in one native class: trunks without heads, merged as such."""

import copy
from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedModel

from hf_zip.adapters import adapter_of, table_of
from hf_zip.errors import HfZipError
from hf_zip.kinds import Kind, head_kind
from hf_zip.sources import Source

# Their rows cannot stand side by side, so two tasks need two heads.
_ONE_TASK: tuple[Kind, ...] = ("question-answering", "masked-lm")
_NOT_APART: tuple[Kind, ...] = ("features", "other")


def heads_apart(sources: Sequence[Source]) -> bool:
    """Tells whether the heads of models have to stay apart in a merge.

    They do if the models are of one family but of several classes, if their heads answer different
    kinds of questions, or if they do the same for several tasks and their rows are not labels.

    Args:
        sources: The models.

    Raises:
        HfZipError: They do, but a model has no head, or one of a kind that cannot.
    """
    classes = {type(source.model).__name__ for source in sources}
    kinds = [head_kind(source.model) for source in sources]
    tasks = {source.task for source in sources if source.task is not None}
    if len({source.model.config.model_type for source in sources}) > 1:
        return False  # refused elsewhere
    one_task = all(kind in _ONE_TASK for kind in kinds)
    if len(classes) == len(set(kinds)) == 1 and not (one_task and len(tasks) > 1):
        return False
    for source, kind in zip(sources, kinds, strict=True):
        if kind in _NOT_APART:
            lacks = "has no task head" if kind == "features" else "has a head of another kind"
            raise HfZipError(
                f"the models are of the classes {', '.join(sorted(classes))}, whose heads stay "
                f"apart in a merge, but {source.reference!r}, a {type(source.model).__name__}, "
                f"{lacks}; give models for classification, regression, tokens, question answering "
                "or masked words"
            )
    return True


def headless(source: Source) -> Source:
    """Returns a source whose model is the trunk without a head and without a pooler.

    The parameters are those of the source's own model, not copies.

    Args:
        source: A model with a task head.
    """
    base = source.model.get_submodule(base_of(source.model))
    trunk: PreTrainedModel = copy.copy(base)
    trunk._modules = dict(base._modules)
    if "pooler" in trunk._modules:
        trunk.pooler = None
    return replace(source, model=trunk)


def base_of(model: PreTrainedModel) -> str:
    """Returns the name of the base model in a model with a head."""
    known = table_of(str(model.config.model_type)) is not None
    return (adapter_of(model).base if known else "") or model.base_model_prefix
