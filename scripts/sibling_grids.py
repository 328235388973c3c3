"""The rows of the benchmark of fine-tunes: merge methods and what their options are chosen from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from hf_zip.methods import method_named

# Of sums of task vectors, which grow with their number, and of merges that do not.
_SUMS = (0.15, 0.2, 0.3, 0.5)
_MEANS = (0.6, 1.0, 1.5, 2.0)
_SPECTRA = (*_MEANS, 2.5, 3.0)


@dataclass(frozen=True)
class Grid:
    """One row of the table: a method, and the options to choose from.

    Args:
        method: The method.
        options: The values of each option; the first combination need not be the defaults, which
            are always measured.
        label: What tells rows of one method apart.
        fixed: Options that are the same in all.
    """

    method: str
    options: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    label: str = ""
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the row is called."""
        return f"{self.method}, {self.label}" if self.label else self.method

    @property
    def needs_texts(self) -> bool:
        """Whether it is calibrated on texts without labels."""
        fits = self.fixed.get("refit", "none") != "none"
        return fits or method_named(self.method).requires.calibration

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields the defaults, and every other combination."""
        yield dict(self.fixed)
        for values in product(*self.options.values()):
            if values:
                yield {**self.fixed, **dict(zip(self.options, values, strict=True))}


_HEAD = {"refit": "head"}

GRIDS = (
    Grid("task_arithmetic", label="base", fixed={"scaling": 0.0}),
    Grid("average"),
    Grid("karcher"),
    Grid("task_arithmetic", {"scaling": _SUMS}),
    Grid("task_arithmetic", {"scaling": _SUMS}, "LiNeS", {"layer_scale": 0.3}),
    Grid("ties", {"scaling": _MEANS, "density": (0.2, 0.5)}),
    Grid("ties", {"scaling": _MEANS}, "every parameter trimmed", {"trim": "tensor"}),
    Grid("dare", {"scaling": _SUMS}),
    Grid("della", {"scaling": _SUMS}),
    Grid("breadcrumbs", {"scaling": _SUMS}),
    Grid("model_stock"),
    Grid("magmax", {"scaling": (0.2, 0.3, 0.4, 0.6, 0.8)}),
    Grid("consensus", {"scaling": _SUMS}),
    Grid("pcb", {"scaling": _MEANS}),
    Grid("sce", {"scaling": _MEANS}),
    Grid("tsv", {"scaling": (0.4, 0.6, 0.8, 1.0, 1.5)}),
    Grid("iso_c", {"scaling": _SPECTRA}),
    Grid("iso_cts", {"scaling": _SPECTRA}),
    Grid("wudi", {"scaling": (0.4, 0.6, 0.8, 1.0), "penalty": (0.01, 0.1)}),
    Grid("ace", {"scaling": (0.4, 0.6, 0.8)}),
    Grid("knots"),
    Grid("regmean", {"alpha": (0.7, 1.0)}),
    Grid("regmean_pp", {"alpha": (0.7, 1.0)}),
    Grid("fisher", {"normalise": ("none", "model")}),
    Grid("mats", {"iterations": (10, 30)}),
    Grid(
        "adamerging",
        {"training": ({"steps": 60, "learning_rate": 0.01},)},
        fixed={"training": {"steps": 60, "learning_rate": 0.003}},
    ),
    Grid("emr"),
    Grid("tall_masks", {"threshold": (0.2, 0.6)}),
    Grid("twin", {"rank": (0.1, 0.3)}, fixed={"routing": "top"}),
    Grid("gated", {"shared": (0.0, 0.85)}, fixed={"routing": "top"}),
    Grid("gated", label="after 3 blocks", fixed={"routing": "top", "gate_after": 3}),
    Grid("wemoe", fixed={"training": {"steps": 60, "learning_rate": 0.001}}),
    Grid("task_arithmetic", label="base, least-squares head", fixed={"scaling": 0.0, **_HEAD}),
    Grid("average", label="least-squares head", fixed=_HEAD),
    Grid("regmean", label="least-squares head", fixed=_HEAD),
    Grid("wudi", label="least-squares head", fixed=_HEAD),
    Grid("iso_c", {"scaling": (1.5,)}, "least-squares head", _HEAD),
    Grid("zipfit"),
)
