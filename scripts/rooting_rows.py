"""The rows of the benchmark of rooting: who is trained on what, for how long, and merged how."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from merging import ALL

import hf_zip
from hf_zip.candidates import Candidate, merged
from hf_zip.methods import method_named
from hf_zip.sources import Source
from hf_zip.tasks import Task


@dataclass(frozen=True)
class Then:
    """How models are merged.

    Args:
        name: What it is called.
        method: The merge method.
        parameters: Its options.
    """

    name: str
    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


ZIPFIT = Then("zipfit", "zipfit")
REGMEAN_WITH_HEAD = Then("regmean, least-squares head", "regmean", {"alpha": 1.0, "refit": "head"})
# Of the root and of models that were rooted in it; the root's own task vector would be zero.
BESIDE_ROOT = (
    Then("average", "average"),
    Then("ties", "ties", {"scaling": 0.5}),
    Then("regmean", "regmean", {"alpha": 1.0}),
    REGMEAN_WITH_HEAD,
    ZIPFIT,
)
_ENDLESS = 10**6  # steps, more than there are seconds for
TIED, FREE = {"anchor": 10.0}, {"anchor": 0.0}  # free: nothing draws models back to the root
# Of models that were all rooted in their merge by zipfit.
FROM_MERGE = (
    Then("average", "average"),
    Then("task arithmetic", "task_arithmetic", {"scaling": 0.5}),
    Then("ties", "ties"),
    Then("tsv", "tsv"),
    Then("iso_c", "iso_c"),
    Then("iso_c, least-squares head", "iso_c", {"refit": "head"}),
    Then("wudi", "wudi"),
    Then("regmean", "regmean", {"alpha": 1.0}),
)

Unit = Literal["steps", "seconds"]


@dataclass(frozen=True)
class Budget:
    """What trainings have.

    Args:
        amount: Steps or seconds for every model but the first, in one rooting of each or in a
            training that learns from all at once.
        data: Whose inputs, without labels.
        unit: What it is that is counted.
    """

    amount: float
    data: str = ALL
    unit: Unit = "steps"

    def __str__(self) -> str:
        """Returns what stands behind the name of a row."""
        return f"{self.amount:g} {self.unit}" + ("" if self.data == ALL else f", {self.data}")

    def limits(self, times: float = 1) -> dict[str, float]:
        """Returns the options of a training that has so many times as much."""
        if self.unit == "seconds":
            return {"seconds": times * self.amount, "steps": _ENDLESS}
        return {"steps": int(times * self.amount)}


Home = Callable[[], tuple[str, Mapping[str, Any]]]  # folder of a root, and notes
Siblings = tuple[list[str], str, Mapping[str, Any]]  # folders, that of the root, and notes


@dataclass(frozen=True)
class Made:
    """What a row measures.

    Args:
        candidate: What answers the tasks.
        notes: How it came about: `seconds` in all, `training` of these, `steps` that all trainings
            made, `barriers`; and in seconds of processors, `processors` in all, and `last` for what
            has to be done again for a last model once the others are merged.
    """

    candidate: Candidate
    notes: Mapping[str, Any]


@dataclass(frozen=True)
class Group:
    """Models to merge, and what on.

    Args:
        sources: The models, the first of which is the root.
        tasks: Their tasks.
        inputs: Inputs without labels as `hf_zip.merge` takes them, by whose they are.
        few: How many of them what is fitted in closed form has.
        training: Options of every training but its length.
        folder: Where models that are made on the way lie.
        seed: Decides batches.
    """

    sources: Sequence[Source]
    tasks: Sequence[Task]
    inputs: Mapping[str, Any]
    few: int
    training: Mapping[str, Any]
    folder: Path
    seed: int = 0

    def few_of(self, data: str) -> Any:
        """Returns the first inputs of some data, for what is fitted in closed form."""
        inputs = self.inputs[data]
        return {**inputs, "samples": self.few} if isinstance(inputs, dict) else inputs[: self.few]

    def merge(
        self,
        name: str,
        then: Then,
        inputs: Any,
        models: Sequence[str] | None = None,
        base: str | None = None,
        before: Mapping[str, Any] | None = None,
    ) -> Made:
        """Merges models, and notes what it took with what came before.

        Args:
            name: What the row is called.
            then: How.
            inputs: What is fitted or trained on.
            models: Folders of the models; left out, the sources.
            base: Their base, for methods that need one.
            before: Notes of what was made before.
        """
        clocks, earlier = _clocks(), before or {}
        result = hf_zip.merge(
            list(models or [source.reference for source in self.sources]),
            method=then.method,
            tasks=[task.name for task in self.tasks],
            base_model=base if method_named(then.method).requires.base else None,
            calibration=inputs,
            parameters=dict(then.parameters),
            seed=self.seed,
            force=True,  # models of different initialisations are averaged too
            progress=False,
        )
        trainings = result.report.trainings
        own = _since(clocks)
        own["last"] = own["processors"]
        notes = {
            **{key: earlier.get(key, 0.0) + spent for key, spent in own.items()},
            "training": earlier.get("training", 0.0) + sum(own.seconds for own in trainings),
            "steps": earlier.get("steps", 0) + sum(own.steps for own in trainings),
            "barriers": earlier.get("barriers", []),
        }
        return Made(merged(result.model, self.tasks, name), notes)

    def root(
        self, position: int, root: str, budget: Budget, training: Mapping[str, Any]
    ) -> tuple[str, Mapping[str, Any]]:
        """Returns the folder of a rooted model, and notes.

        Args:
            position: Which model.
            root: Folder of the root.
            budget: What the training has.
            training: Options of the training beside those of all trainings.
        """
        told = "".join(f", {key} {value}" for key, value in training.items())
        folder = self.folder / f"{position} in {Path(root).name}{told}, {budget}"
        clocks = _clocks()
        result = hf_zip.root(
            self.sources[position].reference,
            root,
            self.inputs[budget.data],
            folder,
            parameters={"training": {**self.training, **training, **budget.limits()}},
            seed=self.seed,
            progress=False,
        )
        found = result.report
        return str(folder), {
            **_since(clocks),
            "training": found.trained.seconds,
            "steps": found.trained.steps,
            "barriers": [found.barrier],
        }


def rows(group: Group, budgets: Sequence[Budget]) -> dict[str, Callable[[], Made]]:
    """Returns what makes each row, by its name; what rows share is made once."""
    found = dict[str, Callable[[], Made]]()

    def add(name: str, make: Callable[..., Made], *given: Any) -> None:
        found[name] = partial(make, name, *given)

    add("weight average", group.merge, Then("average", "average"), None)
    add("zipfit", group.merge, ZIPFIT, group.few_of(ALL))
    for data in dict.fromkeys(budget.data for budget in budgets):
        add(f"zipfit, all inputs of {data}", group.merge, ZIPFIT, group.inputs[data])
    merged = cache(partial(_zipfit, group))  # once for all budgets on the same data

    def first() -> tuple[str, Mapping[str, Any]]:
        return group.sources[0].reference, {}

    for budget in budgets:
        roots: dict[str, tuple[Sequence[Then], Home, Mapping[str, Any]]] = {
            "the first": (BESIDE_ROOT, first, TIED),
            "the first without anchor": ((REGMEAN_WITH_HEAD, ZIPFIT), first, FREE),
            "zipfit": (FROM_MERGE, partial(merged, budget.data), TIED),
            "zipfit without anchor": ((ZIPFIT,), partial(merged, budget.data), FREE),
        }
        for root, (thens, home, training) in roots.items():
            siblings = cache(partial(_siblings, group, home, budget, training))
            for then in thens:
                name = f"rooted in {root}, {then.name}: {budget}"
                add(name, _merged_siblings, group, then, siblings, group.few_of(budget.data))
        for then in _at_once(group, budget):
            add(f"{then.name}: {budget}", group.merge, then, group.inputs[budget.data])
    return found


def _at_once(group: Group, budget: Budget) -> list[Then]:
    """Merges that are trained themselves, with what all rootings have."""
    rootings = len(group.sources) - 1
    whole = {"training": {**group.training, **budget.limits(rootings)}}
    half = {**group.training, **budget.limits(rootings / 2)}
    staged = {
        "training": {**half, **TIED, **budget.limits(1 / 2)},
        "then": "average",
        "second_stage": half,
    }
    return [
        Then("distilled from the first", "distill", whole),
        Then("distilled from zipfit", "distill", {**whole, "start": "zipfit"}),
        Then("rooted in the first, average, distilled", "rooting", staged),
        Then("fs_merge", "fs_merge", {"training": budget.limits(rootings)}),
    ]


def _zipfit(group: Group, data: str) -> tuple[str, Mapping[str, Any]]:
    """The folder of the models' merge by zipfit on some data, and notes."""
    folder, clocks = group.folder / f"zipfit, {data}", _clocks()
    hf_zip.merge(
        [source.reference for source in group.sources],
        method="zipfit",
        tasks=[task.name for task in group.tasks],
        calibration=group.few_of(data),
        out=folder,
        progress=False,
    )
    return str(folder), _since(clocks)


def _siblings(group: Group, home: Home, budget: Budget, training: Mapping[str, Any]) -> Siblings:
    """Folders of the models in one parameter space, that of their root, and notes of all."""
    root, notes = home()
    found, every = [], [notes]
    for position, source in enumerate(group.sources):
        if source.reference == root:
            found.append(root)
            continue
        folder, own = group.root(position, root, budget, training)
        found.append(folder)
        every.append(own)
    keys = ("seconds", "training", "processors", "steps")
    added = {key: sum(own.get(key, 0) for own in every) for key in keys}
    # In a merge of the models, a root changes with the last of them, and all is done again.
    added["last"] = every[-1]["processors"] if root in found else added["processors"]
    return found, root, {**added, "barriers": [b for own in every for b in own.get("barriers", ())]}


def _merged_siblings(
    name: str, group: Group, then: Then, siblings: Callable[[], Siblings], inputs: Any
) -> Made:
    folders, root, notes = siblings()
    return group.merge(name, then, inputs, folders, root, notes)


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(clocks: tuple[float, float]) -> dict[str, float]:
    """Seconds of the clock and of processors since they were read."""
    passed = (now - then for now, then in zip(_clocks(), clocks, strict=True))
    return dict(zip(("seconds", "processors"), passed, strict=True))
