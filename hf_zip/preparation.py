"""A request → sources fit to be merged, and what every method works on."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedModel

from hf_zip.accuracy import check_apart
from hf_zip.adapters import Adapter
from hf_zip.align import State
from hf_zip.arrangement import arrange_heads, trunks_of
from hf_zip.base_model import base_state
from hf_zip.choices import choices
from hf_zip.errors import HfZipError
from hf_zip.evaluate import description_of
from hf_zip.groups import blocks
from hf_zip.headless import heads_apart
from hf_zip.learned import learned
from hf_zip.lineage import Ancestor, method_of_merge, sources_of_merge, weight_of
from hf_zip.method import MergeInputs, MergeMethod, Runtime
from hf_zip.methods import elementwise_methods
from hf_zip.needs import by_accuracy
from hf_zip.partial import check_partial
from hf_zip.preflight import Preflight, preflight, render
from hf_zip.recipe import Recipe
from hf_zip.refit.walk import check_scores
from hf_zip.request import Request
from hf_zip.sources import Source
from hf_zip.support import Support, support
from hf_zip.tasks import Task
from hf_zip.varying import Varied
from hf_zip.vocabulary import in_one_vocabulary

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """Sources that were found fit to be merged, and what every method works on.

    Args:
        sources: The models.
        tasks: Their tasks.
        findings: What was found about them.
        inputs: What every method works on.
        evaluation: Labelled data by task.
        validation: The same, for the choice of the depth.
        apart: Whether the heads stay apart; the methods then work on the trunks.
        base: What the sources were fine-tuned from, where it is known.
        own_bases: What each was fine-tuned from, where that is another; empty if none is.
        options: The method's options, with what they leave to the models.
    """

    sources: tuple[Source, ...]
    tasks: tuple[Task, ...]
    findings: Preflight
    inputs: MergeInputs
    evaluation: Mapping[str, Any]
    validation: Mapping[str, Any] = field(default_factory=dict)
    apart: bool = False
    base: Source | None = None
    own_bases: tuple[Source | None, ...] = ()
    options: Any = None

    @property
    def family(self) -> tuple[Ancestor, ...]:
        """The sources with what they were merged of themselves, for the config of the merge."""
        varied = next(iter(self.inputs.varied.values()), Varied())
        # A weight that varies is not that of the whole model.
        one = not any("weight" in own for own in varied.models)
        weights = [getattr(o, "weight", None) if one else None for o in self.inputs.model_options]
        return tuple(
            Ancestor(
                name=source.name,
                model=source.reference.partition("@")[0] if source.revision else None,
                digest=source.revision or source.sha256,
                **_base_of_adapter(source),
                weight=weight_of(source.model.config) if weight is None else weight,
                merge_method=method_of_merge(source.model.config),
                sources=sources_of_merge(source.model.config),
            )
            for source, weight in zip(self.sources, weights, strict=True)
        )


def prepare(
    request: Request,
    method: MergeMethod,
    force: bool,
    accelerator: Accelerator,
    progress: bool = True,
) -> Prepared:
    """Loads the models, checks that they belong together, and derives their merge groups.

    Args:
        request: What to merge.
        method: The merge method.
        force: Go on despite findings that may be forced.
        accelerator: Only its main process logs the findings.
        progress: Show progress bars, on the main process.

    Raises:
        HfZipError: The models, their tasks or the data do not allow the merge.
    """
    recipe = request.recipe
    chosen = choices(method, recipe)
    sources, base = request.load_sources(), request.load_base()
    own_bases = request.load_own_bases()
    trunk = trunks_of(sources)[0].model
    known = support(trunk)
    chosen = chosen.settled(trunk, known.adapter)
    method = method.with_options(chosen.options)
    needs_base = method.requires.base
    if not needs_base:  # task vectors are added up, and are what they are
        chosen = chosen.weighted(recipe.models, [source.model for source in sources])
    _check_supported(method, recipe, known, heads_apart(sources))
    if known.adapter is not None:
        method.requires.check_form(known.adapter)
    heads, tasks = arrange_heads(sources, recipe.labels)
    if method.per_task and not tasks:
        raise HfZipError(
            f"{method.name!r} keeps something for every task, but a "
            f"{type(sources[0].model).__name__} has no task head, so there are no tasks; give "
            "models with heads, or use another method"
        )
    findings = preflight(
        trunks_of(sources),
        tasks,
        base=base,
        own_bases=own_bases,
        any_base=method.requires.any_base,
        needs_shared_init=method.requires.shared_init,
        method=method.name,
        force=force,
    )
    if accelerator.is_main_process:
        logger.info("%s", render(findings))
    if base is None:
        sources = in_one_vocabulary(sources)
    else:
        *models, base = in_one_vocabulary((*sources, base))
        sources = tuple(models)
    in_one_vocabulary((sources[0], *{id(own): own for own in own_bases if own}.values()))
    trunks = trunks_of(sources)
    if known.adapter is not None:
        if method.requires.plain_scores:
            check_scores(trunks[0].model, known.adapter)
        _check_depth(recipe, trunks[0].model, known.adapter)
    states = tuple(learned(trunk.model) for trunk in trunks)
    evaluation = request.load_evaluation(sources[0], tasks)
    validation = request.load_validation(sources[0], tasks) if by_accuracy(recipe) else {}
    check_apart(evaluation, {name: description_of(data) for name, data in validation.items()})
    own = request.load_own_calibration(sources[0], progress)
    return Prepared(
        sources=sources,
        tasks=tasks,
        findings=findings,
        inputs=MergeInputs(
            states=states,
            groups=known.groups,
            heads=heads,
            base=base_state(trunks[0].model, base.model, heads) if base and needs_base else None,
            own_bases=_own_states(trunks, own_bases, heads),
            seed=recipe.seed,
            model_options=chosen.models,
            varied=chosen.varied(trunks[0].model, known.adapter, states[0]),
            runtime=Runtime(
                models=tuple(trunk.model for trunk in trunks),
                table=known.adapter,
                calibration=request.load_calibration(sources[0], own, progress),
                batch_size=recipe.calibration.batch_size if recipe.calibration else 32,
                accelerator=accelerator,
                progress=progress,
                own=own,
                whole=tuple(source.model for source in sources),
            ),
        ),
        evaluation=evaluation,
        validation=validation,
        apart=heads_apart(sources),
        base=base,
        own_bases=own_bases,
        options=chosen.options,
    )


def _own_states(
    trunks: Sequence[Source], own_bases: Sequence[Source | None], heads: Sequence[str]
) -> tuple[State | None, ...]:
    """The parameters of each model's own base; of models with the same base the same ones."""
    found: dict[int, State] = {}
    for trunk, own in zip(trunks, own_bases, strict=False):
        if own is not None and id(own) not in found:
            found[id(own)] = base_state(trunk.model, own.model, heads)
    return tuple(found.get(id(own)) for own in own_bases)


def _check_supported(method: MergeMethod, recipe: Recipe, known: Support, apart: bool) -> None:
    """Checks that models without a table are asked for nothing that needs one."""
    if known.adapter is not None:
        return
    if not method.requires.elementwise:
        raise HfZipError(
            f"{method.name!r} does not support these models: {known.obstacle}. Without a table, "
            f"models of any class are merged by {elementwise_methods()}"
        )
    if apart:
        raise HfZipError(
            "the heads of these models stay apart, and where a head of theirs begins is not known: "
            f"{known.obstacle}. Merge models whose heads answer one kind of question"
        )
    if recipe.stop_at is not None:
        raise HfZipError(
            f"stop_at is {recipe.stop_at}, but which blocks could be shared is not known: "
            f"{known.obstacle}. Leave stop_at out to share all"
        )


def _base_of_adapter(source: Source) -> dict[str, Any]:
    """What a family tree says of the model that an adapter was merged into."""
    base = source.adapter_base
    if base is None:
        return {}
    identifier = base.reference.partition("@")[0] if base.revision else None
    return {"base": identifier, "base_digest": base.revision or base.sha256}


def _check_depth(recipe: Recipe, model: PreTrainedModel, adapter: Adapter) -> None:
    depth = len(blocks(model, adapter))
    if recipe.stop_at is None or recipe.stop_at == depth:
        return
    if isinstance(recipe.stop_at, int) and recipe.stop_at > depth:
        raise HfZipError(
            f"stop_at is {recipe.stop_at}, but {type(model).__name__} has {depth} blocks; give the "
            f"number of blocks to share, from 0 to {depth}, or leave it out to share all"
        )
    check_partial(model, adapter)
