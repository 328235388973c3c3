"""Arguments and options of the commands: those that several share, and the longer ones."""

from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[Path, typer.Argument(help="Folder that `hf-zip merge` wrote.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write; an earlier merge is replaced.")]
Evaluation = Annotated[
    list[str] | None,
    typer.Option(
        "--evaluation",
        metavar="TASK=DATA",
        help="Labelled data of one task; repeat for every task. DATA as in --calibration.",
    ),
]
AllowPickle = Annotated[
    bool,
    typer.Option("--allow-pickle", help="Read weights in pickles, which can run code."),
]
Lane = Annotated[str, typer.Option(help="stream from files, memory, or auto: stream what can be.")]
Private = Annotated[bool, typer.Option("--private", help="Create it so that only you may see it.")]
CreatePr = Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")]
Branch = Annotated[
    str | None, typer.Option("--revision", help="Branch to write to; the main one if left out.")
]
Token = Annotated[
    str | None,
    typer.Option("--token", help="Access token; that of `hf auth login` if left out."),
]
RepoId = Annotated[str, typer.Argument(metavar="USER/REPO", help="Repository on the Hub.")]
Calibration = Annotated[
    list[str] | None,
    typer.Option(
        metavar="DATA[:column]",
        help="Unlabelled inputs: a Hub data set, an image folder, a parquet, csv, json or txt file "
        "or glob, or what draws inputs (generated:NAME, synthesised:MODEL, sampled:MODEL, "
        "recombined:DATA). Repeat to take equal parts of several.",
    ),
]
OwnCalibration = Annotated[
    list[str] | None,
    typer.Option(
        metavar="DATA[:column]",
        help="Unlabelled inputs of a model's own, for methods that run each model by itself; once "
        "per model, in order.",
    ),
]
OwnBase = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TASK=MODEL",
        help="What the model of one --task was fine-tuned from, where that is not --base, for "
        "transport and what begins with it; repeat for every such model.",
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(help="Calibration inputs in all; of --own-calibration, for each model."),
]
Labels = Annotated[
    str | None,
    typer.Option(
        metavar="apart | union",
        help="Labels that several models have: apart as task/label, or union, one head for "
        "models of one --task whose labels differ in part.",
    ),
]
StopAt = Annotated[
    str | None,
    typer.Option(help="Number of blocks to share, or auto (see --budget); all if left out."),
]
Budget = Annotated[
    list[str] | None,
    typer.Option(
        metavar="parameters=X | explained=X | points=X",
        help="For --stop-at auto: at most X times one model's parameters, at least a share X "
        "of every model explained, or at most X points of accuracy lost; repeat to combine.",
    ),
]
Validation = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TASK=DATA",
        help="For --budget points=X: labelled data of every task, others than --evaluation.",
    ),
]
