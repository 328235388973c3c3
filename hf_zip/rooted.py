"""A model and its root → the rooted model in a folder, with its report and card."""

import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined
from transformers import PreTrainedModel

from hf_zip.base_model import base_state, compare_own_bases
from hf_zip.calibration import from_memory, load_inputs
from hf_zip.collect import make_accelerator
from hf_zip.compatibility import compare_configs, differing_shapes, has_tokenizer
from hf_zip.errors import HfZipError
from hf_zip.metadata import hub_id
from hf_zip.plain import build, plain
from hf_zip.readers import reader_of
from hf_zip.recipe import CalibrationSpec
from hf_zip.redact import described_publicly
from hf_zip.report import versions
from hf_zip.report_records import SourceRecord
from hf_zip.rooting.options import RootingOptions
from hf_zip.rooting.root import root_model
from hf_zip.save import check_replaceable, save_checked
from hf_zip.sources import Source, from_model, load_source
from hf_zip.support import support
from hf_zip.tables import escape, percent
from hf_zip.task_head import task_heads
from hf_zip.tokenization import compare_tokenizers
from hf_zip.training.trained import Trained
from hf_zip.vocabulary import in_one_vocabulary
from hf_zip.wording import described, trained

logger = logging.getLogger(__name__)

REPORT_NAME = "hf_zip_rooting.json"
_WIDTHS = ("hidden_size", "intermediate_size", "num_attention_heads")  # may be the root's own


@dataclass(frozen=True)
class RootingReport:
    """Everything known about one rooting.

    Args:
        architecture: Class of the rooted model.
        model: What it learnt from.
        root: Where it began.
        own_base: What the model was fine-tuned from, if it began as its transport.
        parameters: How it was rooted, every default written out.
        data: Where the inputs come from, as they describe themselves.
        seed: What decided the inputs and batches.
        trained: What is known of the training.
        barrier: Loss barrier on the way from the root, as a share of the larger loss at the ends.
        versions: Versions of Python and of the packages that took part.
        seconds: Time from loading to the rooted model.
    """

    architecture: str
    model: SourceRecord
    root: SourceRecord
    own_base: SourceRecord | None
    parameters: Mapping[str, Any]
    data: Mapping[str, Any]
    seed: int
    trained: Trained
    barrier: float
    versions: Mapping[str, str]
    seconds: float

    def to_json(self) -> str:
        """Returns the report as JSON."""
        return json.dumps(plain(self), indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class RootedResult:
    """A rooted model and everything known about it.

    Args:
        model: The rooted model.
        report: How it came about.
        processor: The root's image processor or tokenizer, if there is one.
        is_main_process: Whether this process is the one that writes files.
    """

    model: PreTrainedModel
    report: RootingReport
    processor: Any = None
    is_main_process: bool = True

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes model, processor, report and card, all at once or not at all.

        Raises:
            HfZipError: The folder is not empty, cannot be written, or does not load again as the
                same model.
        """
        if self.is_main_process:
            texts = {REPORT_NAME: self.report.to_json(), "README.md": rooting_card(self.report)}
            save_checked(self.model, folder, self.processor, texts)


def root(
    model: str | Path | PreTrainedModel,
    root: str | Path | PreTrainedModel,
    data: Any,
    out: str | Path | None = None,
    *,
    parameters: Mapping[str, Any] | None = None,
    own_base: str | Path | PreTrainedModel | None = None,
    processor: Any = None,
    seed: int = 0,
    force: bool = False,
    progress: bool = True,
    allow_pickle: bool = False,
) -> RootedResult:
    """Brings a model into the parameter space of another, its root, on unlabelled inputs.

    Args:
        model: The model: a folder, a Hub id, or in memory, where it is left as it is.
        root: The root, likewise, with any head or none.
        data: Unlabelled inputs: the name of a data set or several, what `calibration` of a recipe
            holds, or data in memory.
        out: Folder to write to. Checkpoints lie beside it until it is written, unless the
            parameters name another folder for them.
        parameters: How to root, see `hf_zip.rooting.options.RootingOptions`.
        own_base: What the model was fine-tuned from, likewise, with `start: transport`.
        processor: Image processor or tokenizer of models in memory.
        seed: Decides the inputs and batches.
        force: Go on despite differences that may be forced.
        progress: Show progress bars, on the main process.
        allow_pickle: Read weights in pickles, which can run code, where there are no others.

    Raises:
        HfZipError: Something is wrong with the models or the data, they do not fit one another, or
            the training fails.

    Example:
        >>> hf_zip.root("b", "a", "images", out="b_in_a")  # doctest: +SKIP
    """
    options: RootingOptions = build(RootingOptions, parameters or {}, "parameters")
    _check_start(options, own_base)
    kept = None
    if out is not None:
        check_replaceable(Path(out))
        if options.training.checkpoints is None:
            kept = Path(f"{Path(out)}.checkpoints")
            options = replace(options, training=replace(options.training, checkpoints=str(kept)))
    accelerator, started = make_accelerator(), time.perf_counter()
    origin, source, *others = (
        from_model(given, None, name, processor)
        if isinstance(given, PreTrainedModel)
        else load_source(str(given), allow_pickle=allow_pickle)
        for given, name in ((root, "root"), (model, "model"), (own_base, "own_base"))
        if given is not None
    )
    heads = task_heads(source.model)
    _check(source, origin, others, heads, force)
    origin, source, *others = in_one_vocabulary((origin, source, *others))
    config = _config_of_root(source, origin)  # before inputs are drawn, which may take long
    if config and others:
        raise HfZipError(
            f"start is 'transport', but {source.reference!r} and its root {origin.reference!r} "
            f"differ in {', '.join(config)}, and only to models of the same shape can something be "
            "brought; leave start out"
        )
    spec, inputs = CalibrationSpec(), data
    if isinstance(data, str | Path):
        data = {"data": str(data)}
    if isinstance(data, Mapping):
        spec = build(CalibrationSpec, data, "data")
        reader = reader_of(source, spec.max_length)
        inputs = load_inputs(spec, reader, seed, progress=progress, allow_pickle=allow_pickle)
    else:
        inputs = from_memory(data, reader_of(source, spec.max_length))
    found = root_model(
        source.model,
        base_state(source.model, origin.model, heads),
        inputs,
        options,
        spec.batch_size,
        accelerator,
        support(source.model).adapter,
        seed,
        "rooting",
        progress,
        config=config,
        own_base=next((base_state(source.model, own.model, heads) for own in others), None),
    )
    if kept is not None:  # the same run without a folder of its own has the same report
        options = replace(options, training=replace(options.training, checkpoints=None))
    report = RootingReport(
        architecture=type(found.model).__name__,
        model=SourceRecord.of(source),
        root=SourceRecord.of(origin),
        own_base=next(map(SourceRecord.of, others), None),
        parameters=plain(options),
        data=inputs.description,
        seed=seed,
        trained=found.trained,
        barrier=found.barrier,
        versions=versions(),
        seconds=time.perf_counter() - started,
    )
    result = RootedResult(found.model, report, origin.processor, accelerator.is_main_process)
    if out is not None:
        result.save_pretrained(out)
        if kept is not None and result.is_main_process:
            shutil.rmtree(kept, ignore_errors=True)
    accelerator.wait_for_everyone()
    return result


def rooting_card(report: RootingReport) -> str:
    """Returns the model card of a rooted model, metadata and text.

    Args:
        report: What is known about it; local paths are reduced to their last parts.
    """
    known = filter(None, (report.root, report.model, report.own_base))
    models = list(dict.fromkeys(filter(None, map(hub_id, known))))
    data = ModelCardData(
        base_model=models or None,
        base_model_relation="finetune",
        library_name="transformers",
        tags=["hf_zip", "rooting"],
    )
    environment = Environment(
        loader=PackageLoader("hf_zip"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, not HTML: the filter `md` escapes
    )
    environment.filters |= {
        "md": escape,
        "percent": percent,
        "trained": trained,
        "described": lambda found: escape(described(described_publicly(found))),
    }
    return environment.get_template("rooting_card.md").render(
        report=report, metadata=data.to_yaml()
    )


def _check_start(options: RootingOptions, own_base: Any) -> None:
    """Checks that there is a base of the model's own where, and only where, it is of use."""
    if options.start == "transport" and own_base is None:
        raise HfZipError(
            "start is 'transport', which takes what the model was fine-tuned from; give own_base "
            "(--own-base), or leave start out"
        )
    if options.start != "transport" and own_base is not None:
        raise HfZipError(
            f"own_base is given, but start is {options.start!r}, which does not use it; set "
            "start: transport, or leave own_base out"
        )


def _check(
    source: Source, origin: Source, own_bases: Sequence[Source], heads: Sequence[str], force: bool
) -> None:
    """Checks that a model and its root are of one family and read inputs alike."""
    kinds = [type(own.model.config).__name__ for own in (source, origin)]
    if kinds[0] != kinds[1]:
        raise HfZipError(
            f"{source.reference!r} has a {kinds[0]}, but its root {origin.reference!r} a "
            f"{kinds[1]}; a model can only be rooted in one of its own family"
        )
    findings = list(compare_configs(source, origin, force))
    if has_tokenizer(source) and has_tokenizer(origin):
        findings += compare_tokenizers(source, origin, force)
    findings += compare_own_bases((source,), own_bases, heads, force)
    for finding in findings:
        if finding.level == "error":
            raise HfZipError(finding.message)
        logger.info("%s", finding.message)


def _config_of_root(source: Source, origin: Source) -> dict[str, Any]:
    """The entries of the root's config that differ from the model's and that the copy takes over.

    A merge by ZipFit, for one, has other numbers of heads and hidden units than what it was made
    of, and the same weights do something else with the model's.
    """
    found = {}
    for key, (mine, theirs) in differing_shapes(source.model, origin.model).items():
        if key.rpartition(".")[2] not in _WIDTHS:
            raise HfZipError(
                f"{source.reference!r} and its root {origin.reference!r} differ in {key}, {mine} "
                f"and {theirs}; a model can only be rooted in one with the same {key}"
            )
        found[key] = theirs
    return found
