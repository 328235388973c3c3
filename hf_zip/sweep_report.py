"""What a sweep found, as it lies in its folder."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_zip.errors import HfZipError
from hf_zip.evaluate import Evaluation
from hf_zip.plain import build

SWEEP_NAME = "sweep.json"


@dataclass(frozen=True)
class SweepReport:
    """One merge at several depths or sizes.

    Args:
        recipe: The resolved recipe, less what a sweep does not use.
        versions: Versions of Python and of the packages that took part.
        evaluation: What was measured.
    """

    recipe: Mapping[str, Any]
    versions: Mapping[str, str]
    evaluation: Evaluation

    def to_json(self) -> str:
        """Returns the report as JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


def read_sweep(folder: str | Path) -> SweepReport:
    """Returns the report in the folder of a sweep.

    Raises:
        HfZipError: There is none, it is not JSON, or a key of it is unknown or missing.
    """
    path = Path(folder) / SWEEP_NAME
    if not path.is_file():
        raise HfZipError(f"{str(folder)!r} holds no {SWEEP_NAME}; give a folder of a sweep")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise HfZipError(f"{str(path)!r} is not valid JSON: {error}") from error
    report: SweepReport = build(SweepReport, values, "sweep")
    return report
