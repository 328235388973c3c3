"""The line from a recipe to a merged model, top to bottom."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hf_zip.accuracy import check_apart
from hf_zip.adapter_folder import MergedAdapter, save_adapter
from hf_zip.asked import read_request
from hf_zip.choices import method_options
from hf_zip.collect import make_accelerator
from hf_zip.comparison import measure
from hf_zip.errors import HfZipError
from hf_zip.execution import assemble_merge, run_method
from hf_zip.hub import Destination, upload
from hf_zip.lora_output import adapter_record, as_adapter
from hf_zip.merged import for_task, load_merge
from hf_zip.methods import method_named
from hf_zip.needs import check_needs, resolve_unmerge
from hf_zip.preparation import prepare
from hf_zip.recipe import Recipe
from hf_zip.record import config_record, files, make_report, refresh, resolved_recipe
from hf_zip.report import Report, read
from hf_zip.request import Request
from hf_zip.save import MARKER, SHARD, check_replaceable, save_checked
from hf_zip.streaming.lane import streamed
from hf_zip.streaming.merge import merge_files


@dataclass(frozen=True)
class MergeResult:
    """A merged model and everything known about it.

    Args:
        load: Returns the merged model, of the sources' own class.
        report: What was merged, found and measured.
        recipe: The resolved recipe, every default and revision written out.
        processor: The sources' image processor or tokenizer, if they have one.
        is_main_process: Whether this process is the one that writes files.
        adapter: Of a merge that is written as an adapter of its base, the adapter; the model is
            what both make together.
    """

    load: Callable[[], PreTrainedModel]
    report: Report
    recipe: Recipe
    processor: Any = None
    is_main_process: bool = True
    adapter: MergedAdapter | None = None

    @cached_property
    def model(self) -> PreTrainedModel:
        """The merged model; of a merge that was streamed, loaded from its folder on first use."""
        return self.load()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes model, processor, recipe, report, card and pictures, all at once or not at all.

        Raises:
            HfZipError: The folder holds something else than a merge, cannot be written, or does
                not load again as the same model.
        """
        if not self.is_main_process:
            return
        beside = files(self.recipe, self.report)
        if self.adapter is None:
            size = self.recipe.max_shard_size or SHARD
            save_checked(self.model, folder, self.processor, beside, size)
        else:
            save_adapter(self.model, self.adapter, folder, self.processor, beside)

    def push_to_hub(
        self,
        repo_id: str,
        private: bool = False,
        revision: str | None = None,
        create_pr: bool = False,
        token: str | bool | None = None,
        commit_message: str | None = None,
    ) -> str | None:
        """Uploads what `save_pretrained` writes as one commit, without local paths.

        Args:
            repo_id: The repository, `user/name`; see `hf_zip.push` for all arguments.
            private: Whether only you may see it.
            revision: The branch.
            create_pr: Open a pull request instead.
            token: Access token; left out, the stored one.
            commit_message: First line of the commit.

        Returns:
            The address of the commit or of the pull request; nothing on other processes than the
            main one.

        Raises:
            HfZipError: See `hf_zip.push`.
        """
        destination = Destination(repo_id, private, revision, create_pr, token, commit_message)
        if not self.is_main_process:
            return None
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "merged"
            self.save_pretrained(folder)
            return upload(folder, self.report, destination)

    def for_task(self, task: str) -> PreTrainedModel:
        """Returns a single-task model.

        Raises:
            HfZipError: There is no such task.
        """
        return for_task(self.model, task)


def merge(
    models: Recipe | Mapping[str, Any] | str | Path | Sequence[str | Path | PreTrainedModel],
    *,
    method: str | None = None,
    tasks: Sequence[str | None] | None = None,
    processor: Any = None,
    calibration: Any = None,
    evaluation: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    validation: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    own_calibration: Sequence[Any] | None = None,
    own_bases: Sequence[str | Path | PreTrainedModel | None] | None = None,
    out: str | Path | None = None,
    force: bool = False,
    progress: bool = True,
    allow_pickle: bool = False,
    lane: str = "auto",
    **recipe_keys: Any,
) -> MergeResult:
    """Merges models into one.

    Args:
        models: A recipe, its mapping, or the path of its YAML file; or a list of models: folders,
            Hub ids, or models in memory, which are left as they are.
        method: Merge method, for a list of models.
        tasks: One task name per model of a list; nothing for a model that is named after itself or,
            if it is a merge, has the tasks of that.
        processor: Image processor or tokenizer of models in memory.
        calibration: Unlabelled inputs, for a list of models: what a recipe may say, one or several
            data sets by name, or a data set, a list of images or texts or a tensor in memory.
        evaluation: Labelled data by task, for a list of models: data sets by name or in memory.
        validation: The same, to choose the depth on; see `Recipe`.
        own_calibration: For a list of models, one entry per model: unlabelled inputs of its own, as
            for `calibration`, or nothing; for methods that run each model by itself.
        own_bases: For a list of models, one entry per model: what it was fine-tuned from, by name
            or in memory, where that is not `base_model`, or nothing; for `transport`.
        out: Folder to write to. It is written as soon as the model is merged, and its report and
            card again after the evaluation.
        force: Merge despite findings that may be forced.
        progress: Show progress bars, on the main process.
        allow_pickle: Read weights in pickles, which can run code, where there are no others.
        lane: "stream" merges from files into `out` a few rows at a time, for methods that go
            parameter by parameter where nothing is run, and refuses other merges; "memory" loads
            the models; "auto" streams what can be. The merge is the same.
        **recipe_keys: More keys of the recipe, such as `parameters`, `dtype` or `seed`;
            `base_model` may be a model in memory.

    Returns:
        The merged model with its report.

    Raises:
        HfZipError: Something is wrong with the recipe, the models or the data, or the models do
            not belong together.

    Example:
        >>> result = merge(["a", "b"], method="zipit", calibration="images")  # doctest: +SKIP
        >>> result.for_task("a").save_pretrained("just_a")  # doctest: +SKIP
    """
    request = read_request(
        models,
        method,
        tasks,
        processor,
        calibration,
        evaluation,
        recipe_keys,
        validation,
        own_calibration,
        own_bases,
    )
    chosen = method_named(request.recipe.merge_method)
    request = replace(request, allow_pickle=allow_pickle)
    options = method_options(chosen, request.recipe.parameters)
    if chosen.needs_base(options) or request.recipe.output == "lora":
        request = request.with_shared_base()
    recipe = request.recipe
    check_needs(chosen, request)
    if out is not None:
        check_replaceable(Path(out))

    accelerator = make_accelerator()
    processes = accelerator.num_processes
    with streamed(request, chosen, options, lane, out is not None, processes) as files_only:
        if files_only is not None and out is not None:
            written = merge_files(files_only, chosen, options, Path(out), force, accelerator)
            return MergeResult(
                partial(_loaded, Path(out)), written.report, written.recipe, written.processor
            )
    started = time.perf_counter()
    prepared = prepare(request, chosen, force, accelerator, progress)
    options = prepared.options
    merged = run_method(chosen, prepared, options)
    unmerge = resolve_unmerge(chosen, request)
    record = config_record(chosen, options, recipe, prepared)
    assembled = assemble_merge(recipe, merged, prepared, record, unmerge)
    model, adapter = assembled.model, None
    if recipe.output == "lora" and (base := request.load_base()) is not None:
        model, adapter = as_adapter(model, recipe, prepared.sources[0], base, prepared.inputs.heads)
    resolved = resolved_recipe(recipe, prepared, options, assembled.depth, unmerge)
    seconds = time.perf_counter() - started
    report = make_report(assembled, resolved, prepared, chosen, merged, seconds)
    if adapter is not None:
        report = replace(report, adapter=adapter_record(adapter))
    result = MergeResult(
        lambda: model,
        report,
        resolved,
        prepared.sources[0].processor,
        accelerator.is_main_process,
        adapter,
    )
    if out is not None:
        result.save_pretrained(out)
    if request.evaluates:
        measured = measure(model, request, prepared)
        result = replace(result, report=replace(report, evaluation=measured))
        if out is not None and result.is_main_process:
            refresh(Path(out), resolved, result.report)
    accelerator.wait_for_everyone()
    return result


def _loaded(folder: Path) -> PreTrainedModel:
    return load_merge(folder)[0]


def reevaluate(
    folder: str | Path,
    evaluation: Sequence[Mapping[str, Any]] | None = None,
    force: bool = False,
    progress: bool = True,
    allow_pickle: bool = False,
) -> Report:
    """Measures a merge in a folder again and refreshes its report and card.

    Args:
        folder: Folder that `merge` wrote.
        evaluation: Labelled data, as in a recipe; left out, what the recipe says.
        force: Evaluate despite findings that may be forced.
        progress: Show progress bars, on the main process.
        allow_pickle: See `merge`; of the sources.

    Raises:
        HfZipError: The folder is not a merge, or there is nothing to evaluate on but what its depth
            was chosen on.
    """
    folder = Path(folder)
    if not (folder / MARKER).is_file():
        raise HfZipError(f"{str(folder)!r} holds no {MARKER}; give a folder that a merge wrote")
    recipe = Recipe.from_yaml(folder / MARKER)
    if evaluation is not None:
        recipe = Recipe.from_dict({**recipe.to_dict(), "evaluation": list(evaluation)})
    request = Request(recipe, allow_pickle=allow_pickle)
    if not request.evaluates:
        raise HfZipError(
            f"the recipe of {str(folder)!r} names no evaluation data; give them, such as "
            "--evaluation cars=test.parquet"
        )
    accelerator = make_accelerator()
    report = read(folder)
    prepared = prepare(request, method_named(recipe.merge_method), force, accelerator, progress)
    if report.validation is not None:
        decided = {task.name: task.data for task in report.validation.tasks}
        check_apart(prepared.evaluation, decided)
    model, _ = load_merge(folder)
    measured = measure(model, request, prepared)
    report = replace(report, evaluation=measured, recipe=recipe.to_dict())
    if accelerator.is_main_process:
        refresh(folder, recipe, report)
    accelerator.wait_for_everyone()
    return report


def export(folder: str | Path, task: str, out: str | Path) -> None:
    """Writes a single-task model of a merge in a folder.

    Args:
        folder: Folder that `merge` wrote.
        task: Which of its tasks.
        out: Folder to write; it should not exist or be empty.

    Raises:
        HfZipError: The folder is not a merge, has no such task, or `out` cannot be written.
    """
    model, processor = load_merge(folder)
    save_checked(for_task(model, task), out, processor)
