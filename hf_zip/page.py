"""A merge's or a sweep's report → one web page that needs no network, no scripts and no files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hf_zip.charts import Chart, charts, pareto
from hf_zip.drawing import svg
from hf_zip.errors import HfZipError
from hf_zip.evaluate import Evaluation
from hf_zip.lineage import tree
from hf_zip.metadata import hub_id
from hf_zip.redact import published, published_sweep
from hf_zip.report import REPORT_NAME, Report, read
from hf_zip.report_records import SourceRecord
from hf_zip.save import write_file
from hf_zip.sources import AdapterBase
from hf_zip.sweep_report import SWEEP_NAME, SweepReport, read_sweep
from hf_zip.tables import percent, table_cells
from hf_zip.wording import answered, described, joined, licence, limits, meanings, metrics

PAGE_NAME = "hf_zip_report.html"


def report_page(folder: str | Path, out: str | Path | None = None) -> Path:
    """Writes one web page with everything known of a merge or a sweep, and returns its path.

    It is made from the report in the folder alone. Local paths are reduced to their last parts.

    Args:
        folder: Folder that a merge or a sweep wrote.
        out: HTML file to write, all at once; left out, `hf_zip_report.html` in the folder. It is
            never pushed, and written again when the merge is evaluated again.

    Raises:
        HfZipError: The folder holds neither report, or one that cannot be read; or the file cannot
            be written or is not to be called HTML.

    Example:
        >>> hf_zip.report_page("merged")  # doctest: +SKIP
    """
    folder = Path(folder)
    page = render_page(_read(folder))
    path = folder / PAGE_NAME if out is None else Path(out)
    if path.suffix.lower() not in (".html", ".htm"):
        raise HfZipError(f"{str(path)!r} is no name of a web page; give one that ends in .html")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, page)
    except OSError as error:
        raise HfZipError(f"cannot write {str(path)!r}: {error}; give another --out") from error
    return path


def render_page(report: Report | SweepReport) -> str:
    """Returns a report as a web page: tables, and pictures where they can be drawn."""
    shown = _of_merge(report) if isinstance(report, Report) else _of_sweep(report)
    environment = Environment(
        loader=PackageLoader("hf_zip"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,
    )
    environment.filters |= {
        "described": described,
        "joined": joined,
        "address": _address,
        "licence": licence,
        "percent": percent,
        "tree": lambda family: "\n".join(tree(family)),
    }
    return environment.get_template("report.html").render(shown)


def _read(folder: Path) -> Report | SweepReport:
    if (folder / REPORT_NAME).is_file():
        return read(folder)
    if (folder / SWEEP_NAME).is_file():
        return read_sweep(folder)
    raise HfZipError(
        f"{str(folder)!r} holds neither {REPORT_NAME} nor {SWEEP_NAME}; give a folder that "
        "`hf-zip merge` or `hf-zip sweep` wrote"
    )


def _of_merge(report: Report) -> dict[str, Any]:
    report = published(report)
    names = [source.name for source in report.sources]
    calibration = report.calibration
    return {
        "report": report,
        "title": joined(names),
        "method": report.method.name,
        "recipe": _yaml(report.recipe),
        "versions": report.versions,
        "calibration": [] if calibration is None else calibration.get("parts", [calibration]),
        "own_calibration": report.own_parts,
        "limits": limits(report),
        "answered": [answered(report, source) for source in report.sources],
        "depths": report.depths,
        **_measured(report.evaluation, report.apart),
        **_pictures(charts(report)),
    }


def _of_sweep(report: SweepReport) -> dict[str, Any]:
    report = published_sweep(report)
    method = str(report.recipe.get("merge_method", "one method"))
    return {
        "report": None,
        "title": f"Sweep of {method}",
        "method": method,
        "recipe": _yaml(report.recipe),
        "versions": report.versions,
        "limits": [
            f"Not measured: {name}, because {why}."
            for name, why in report.evaluation.skipped.items()
        ],
        **_measured(report.evaluation),
        **_pictures([pareto(report.evaluation)]),
    }


def _measured(evaluation: Evaluation | None, apart: bool = False) -> dict[str, Any]:
    head, *rows = table_cells(evaluation) if evaluation else [[]]
    return {
        "evaluation": evaluation,
        "head": head,
        "rows": rows,
        "kinds": meanings(evaluation, apart),
        "metrics": metrics(evaluation),
    }


def _pictures(shown: Sequence[Chart]) -> dict[str, Any]:
    """Charts with their pictures; matplotlib writes names into them as text, never as markup."""
    drawn = [(chart, svg(chart)) for chart in shown]
    return {
        "charts": [(chart, Markup(picture) if picture else None) for chart, picture in drawn],
        "lacks_pictures": any(picture is None for _, picture in drawn),
    }


def _address(source: SourceRecord | AdapterBase) -> str | None:
    """The page of a source on the Hub."""
    identifier = hub_id(source)
    return f"https://huggingface.co/{quote(identifier)}" if identifier else None


def _yaml(value: Mapping[Any, Any]) -> str:
    return yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True, width=float("inf"))
