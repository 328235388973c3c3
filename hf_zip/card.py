"""A merge's report → the README.md of its repository, rendered from values and without network."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from hf_zip.charts import charts
from hf_zip.drawing import picture_name
from hf_zip.kinds import Kind, has_labels
from hf_zip.licenses import stated_licenses
from hf_zip.lineage import tree
from hf_zip.metadata import card_metadata, hub_id, last_row
from hf_zip.redact import published
from hf_zip.report import Report
from hf_zip.report_records import SourceRecord
from hf_zip.sources import AdapterBase
from hf_zip.tables import amount, escape, factors_table, markdown_table, percent
from hf_zip.wording import answered, described, joined, licence, limits, meanings, metrics, trained

# Part of a class name → the task tag of its pipeline on the Hub.
_PIPELINES = {
    "ForImageClassification": "image-classification",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
}
_EXAMPLES = {
    "image-classification": "image.png",
    "text-classification": "a text to classify",
    "token-classification": "a text to classify",
}


def render_card(
    report: Report,
    repo_id: str | None = None,
    revision: str | None = None,
    pictures: Collection[str] = (),
) -> str:
    """Returns the model card of a merged model, metadata and text.

    Args:
        report: What is known about the merge.
        repo_id: Repository on the Hub that the usage code should load from; left out, the code
            runs in the model's own folder.
        revision: Its branch; left out, the main one.
        pictures: Files beside the card; those that are pictures of the merge are shown.
    """
    report = published(report)
    title = repo_id.split("/")[-1] if repo_id else " and ".join(_names(report.sources))
    masked = report.architecture == "HfZipMaskedModel"
    routed = report.architecture == "HfZipRoutedModel"
    mixture = report.architecture == "HfZipMixtureModel"
    inside = (masked or routed or mixture) and not report.apart
    native = report.sources[0].architecture if inside else None
    part = next((part for part in _PIPELINES if part in (native or report.architecture)), "")
    pipeline = _PIPELINES.get(part)
    partial = report.architecture == "HfZipForImageClassification"
    several = report.apart
    # What is no model with a listed task is not what AutoModel loads, but for bare trunks.
    bare = partial or report.architecture.endswith("Model")
    return (
        _environment(report)
        .get_template("model_card.md")
        .render(
            report=report,
            metadata=card_metadata(report, title, pipeline).to_yaml(),
            title=title,
            local=repo_id is None,
            location=_location(repo_id or ".", revision),
            pipeline=pipeline,
            texts=pipeline not in (None, "image-classification"),
            shown=_shown([task.kind for task in report.tasks]),
            labels=[label for task in report.tasks for label in task.labels],
            example=_EXAMPLES.get(pipeline or "text-classification"),
            auto_class=f"AutoModel{part}" if part or bare else report.architecture,
            tasks=[escape(f"the task {task.name}") for task in report.tasks],
            license=report.common_license,
            stated=[(escape(n), found) for n, found in stated_licenses(report.sources).items()],
            table=markdown_table(report.evaluation) if report.evaluation else None,
            kinds=meanings(report.evaluation, several),
            merge=last_row(report.evaluation, "merge"),
            metrics=metrics(report.evaluation),
            limits=limits(report),
            pictures=[
                (picture_name(chart), chart)
                for chart in charts(report)
                if picture_name(chart) in pictures
            ],
            correlation=_correlation(report.matching),
            explained=_least_explained(report.explained),
            factors=factors_table(report.coefficients, _names(report.sources)),
            partial=partial,
            masked=masked,
            routed=routed,
            mixture=mixture,
            size=amount(report.sizes.get("merge", 0)),
            sources_size=amount(report.sizes.get("sources", 0)),
            several=several,
            heads=[
                (task, report.sources[position].architecture)
                for task in report.tasks
                for position in task.members
            ],
            heads_read=_heads(report.recipe),
            takes_texts="Tokenizer" in (report.processor or ""),
            tails=_tails(report.recipe),
            trust=", trust_remote_code=True" if report.architecture.startswith("HfZip") else "",
        )
    )


def _environment(report: Report) -> Environment:
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
        "joined": joined,
        "names": lambda sources: [escape(name) for name in _names(sources)],
        "members": lambda task: [report.sources[position] for position in task.members],
        "label_map": lambda task: dict(enumerate(task.labels, start=task.start)),
        "origin": _origin,
        "digest": _digest,
        "licence": lambda source: escape(licence(source)),
        "answers": lambda source: escape(answered(report, source)),
        "tree": lambda family: "\n".join(tree(family)),
        "described": lambda data: escape(described(data)),
        "percent": percent,
        "trained": trained,
        "yaml": _yaml,
        "fenced": _fenced,
        "python": lambda text: json.dumps(text, ensure_ascii=False),
    }
    return environment


def _location(place: str, revision: str | None) -> str:
    """What the usage code loads from, as arguments."""
    return json.dumps(place) + (f", revision={json.dumps(revision)}" if revision else "")


def _shown(kinds: Sequence[Kind]) -> str:
    """What the usage code shows of an answer; nothing where tasks have no rows of their own."""
    found = {*kinds}
    if found == {"classification"}:
        return "label"
    if found == {"token-classification"}:
        return "tokens"
    return "values" if kinds and all(map(has_labels, kinds)) else ""


def _tails(recipe: Mapping[str, Any]) -> str:
    """What became of the tails of a partial zip."""
    if recipe.get("stop_at") == 0:
        return "as they were"
    if recipe.get("unmerge") == "exact":
        return "as they were, rewritten in the shared features"
    return "as they were, behind a linear map that was fitted on the calibration data"


def _heads(recipe: Mapping[str, Any]) -> str:
    """How heads of several kinds read what is shared."""
    if recipe.get("unmerge") == "exact":
        return "and reads the shared features as they are"
    return "behind a linear map that was fitted on the calibration data"


def _least_explained(explained: Mapping[str, float]) -> tuple[str, float] | None:
    """Where the merged features hold least of the sources', and how much; nothing if not known."""
    return min(explained.items(), key=lambda item: item[1]) if explained else None


def _correlation(matching: Mapping[str, float]) -> dict[str, Any] | None:
    if not matching:
        return None
    return {
        "mean": sum(matching.values()) / len(matching),
        "lowest": min(matching, key=lambda group: matching[group]),
    }


def _origin(source: SourceRecord | AdapterBase) -> str:
    """Where a source was loaded from, in Markdown; a local folder is not said to be anywhere."""
    identifier = hub_id(source)
    own = f"<https://huggingface.co/{identifier}>" if identifier else "a local model"
    base = getattr(source, "adapter_base", None)
    if base is None:
        return own
    return f"{own if identifier else 'a local adapter'}, merged into {_origin(base)}"


def _digest(source: SourceRecord | AdapterBase) -> str:
    own = "not recorded"
    if source.revision or source.sha256:
        own = f"`{source.revision}`" if source.revision else f"sha256 `{source.sha256}`"
    base = getattr(source, "adapter_base", None)
    return own if base is None else f"{own}, base {_digest(base)}"


def _names(sources: Sequence[SourceRecord]) -> list[str]:
    return [source.name for source in sources]


def _fenced(text: str, language: str) -> str:
    """A code block whose fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _yaml(value: Mapping[Any, Any]) -> str:
    return yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True, width=float("inf"))
