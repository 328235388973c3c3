"""The command line. Heavy imports wait inside the commands, so that `--help` answers at once."""

import logging
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from hf_zip import __version__
from hf_zip.errors import HfZipError
from hf_zip.merge_command import merge
from hf_zip.options import (
    AllowPickle,
    Branch,
    CreatePr,
    Evaluation,
    Folder,
    Out,
    Private,
    RepoId,
    Token,
)
from hf_zip.root_command import root

INTERRUPTED, TERMINATED = 130, 143

app = typer.Typer(
    name="hf-zip",
    help="Merge fine-tuned transformers of different tasks into one model that does all their "
    "jobs, without training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(asked: bool) -> bool:
    if asked:
        typer.echo(f"hf_zip {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def every_command(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Options of the program itself."""


app.command()(merge)


@app.command()
def evaluate(
    folder: Folder,
    evaluation: Evaluation = None,
    force: Annotated[
        bool, typer.Option("--force", help="Evaluate despite a finding that may be forced.")
    ] = False,
    allow_pickle: AllowPickle = False,
) -> None:
    """Measure a merge beside its parents and controls; refresh its report and card."""
    from hf_zip.arguments import labelled
    from hf_zip.pipeline import reevaluate
    from hf_zip.tables import table

    data = labelled("--evaluation", evaluation) if evaluation else None
    found = reevaluate(folder, data, force=force, allow_pickle=allow_pickle)
    if found.evaluation is not None:
        typer.echo(table(found.evaluation))


@app.command()
def sweep(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE.yaml", help="The merge.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for table, data and plot.")],
    depths: Annotated[
        str | None, typer.Option(metavar="0,2,4", help="Numbers of shared blocks; all if left out.")
    ] = None,
    sizes: Annotated[
        str | None, typer.Option(metavar="0.5,1,2", help="Sizes relative to one model, instead.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Go on despite a finding that may be forced.")
    ] = False,
    allow_pickle: AllowPickle = False,
) -> None:
    """Measure a merge at several depths or sizes: accuracy against parameters and MACs."""
    from hf_zip.arguments import numbers
    from hf_zip.recipe import Recipe
    from hf_zip.sweep import sweep as run
    from hf_zip.tables import table

    grid = (numbers("--depths", depths, int), numbers("--sizes", sizes, float))
    found = run(Recipe.from_yaml(recipe), out, *grid, force=force, allow_pickle=allow_pickle)
    typer.echo(table(found))
    typer.echo(f"wrote {out}")


@app.command()
def inspect(
    models: Annotated[list[str], typer.Argument(help="Local folders and Hub ids, or one merge.")],
    propose: Annotated[
        bool,
        typer.Option(
            "--propose", help="Draft the table of the family of one model, from its config alone."
        ),
    ] = False,
    allow_pickle: AllowPickle = False,
) -> None:
    """Show merge groups, and whether and how models can be merged; or draft a family's table."""
    if propose:
        from hf_zip.propose import propose as draft

        if len(models) != 1:
            raise HfZipError(f"--propose drafts a table from one model, not from {len(models)}")
        typer.echo(draft(models[0]).source)
        return
    from hf_zip.inspection import describe

    typer.echo(describe(models, allow_pickle))


@app.command(name="zero-shot")
def zero_shot(
    model: Annotated[
        str, typer.Argument(help="Local folder or Hub id of a CLIP, or of an image encoder.")
    ],
    labels: Annotated[str, typer.Option(metavar="A,B,C", help="Names of the classes.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    template: Annotated[
        list[str] | None,
        typer.Option(help="What is said of a class, {} for its name; repeat to take the mean."),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(help="The CLIP of an image encoder that was fine-tuned alone."),
    ] = None,
    allow_pickle: AllowPickle = False,
) -> None:
    """Write the image classifier that a CLIP is for some classes, so that it can be merged."""
    from hf_zip.zero_shot import TEMPLATE, write_zero_shot

    names = [name.strip() for name in labels.split(",")]
    write_zero_shot(model, names, out, template or TEMPLATE, allow_pickle, clip)
    typer.echo(f"wrote {out}")


app.command()(root)


@app.command()
def methods() -> None:
    """List the merge methods and their options."""
    from hf_zip.catalogue import methods_text

    typer.echo(methods_text())


@app.command()
def adapters() -> None:
    """List the supported families of models."""
    from hf_zip.catalogue import adapters_text

    typer.echo(adapters_text())


@app.command()
def export(
    folder: Folder,
    task: Annotated[str, typer.Option(help="Task whose labels the exported model keeps.")],
    out: Out,
) -> None:
    """Write a model for one task of a merge."""
    from hf_zip.pipeline import export as run

    run(folder, task, out)
    typer.echo(f"wrote {out}")


@app.command()
def card(folder: Folder) -> None:
    """Write a merge's card and pictures again from its report."""
    from hf_zip.record import refresh_card

    refresh_card(folder)
    typer.echo(f"wrote {folder / 'README.md'}")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a merge or of a sweep.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="HTML file to write; in the folder if left out.")
    ] = None,
) -> None:
    """Write one web page with everything known of a merge or a sweep, to open without network."""
    from hf_zip.page import report_page

    typer.echo(f"wrote {report_page(folder, out)}")


@app.command()
def push(
    folder: Folder,
    repo_id: RepoId,
    private: Private = False,
    create_pr: CreatePr = False,
    revision: Branch = None,
    token: Token = None,
) -> None:
    """Upload a merge to the Hub as one commit, after loading it again."""
    from hf_zip.hub import push as run

    address = run(
        folder, repo_id, private=private, revision=revision, create_pr=create_pr, token=token
    )
    if address is not None:
        typer.echo(f"pushed to {address}")


def main() -> None:
    """Runs the command line; an error ends in one message and exit code 1."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("hf_zip").setLevel(logging.INFO)
    # A terminated run cleans up like an interrupted one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        app()
    except HfZipError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except SystemExit as stop:
        if stop.code in (INTERRUPTED, TERMINATED):
            typer.echo("stopped; folders are as they were, or whole", err=True)
        raise
