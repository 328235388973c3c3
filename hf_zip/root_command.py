"""The command `hf-zip root`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_zip.options import AllowPickle


def root(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of the model to bring over.")],
    origin: Annotated[
        str, typer.Option("--root", help="The model in whose parameter space it should be.")
    ],
    data: Annotated[
        list[str], typer.Option("--data", help="Unlabelled inputs, as in --calibration; repeat.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    own_base: Annotated[
        str | None,
        typer.Option("--own-base", help="What the model was fine-tuned from; see start=transport."),
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Inputs in all.")] = None,
    seed: Annotated[int, typer.Option(help="Decides inputs and batches.")] = 0,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One setting, such as training.steps=500."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Go on despite a difference that may be forced.")
    ] = False,
    allow_pickle: AllowPickle = False,
) -> None:
    """Train a copy of a root to do what a model does, so that both can be merged as siblings."""
    from hf_zip.plain import assign_texts

    parameters: dict[str, Any] = {}
    assign_texts(parameters, assignments or [])

    from hf_zip.rooted import root as run
    from hf_zip.wording import trained

    given = {"data": data, **({} if samples is None else {"samples": samples})}
    result = run(
        model,
        origin,
        given,
        out,
        parameters=parameters,
        own_base=own_base,
        seed=seed,
        force=force,
        allow_pickle=allow_pickle,
    )
    if result.is_main_process:
        typer.echo(trained(result.report.trained))
        typer.echo(f"loss barrier {100 * result.report.barrier:.1f} %")
        typer.echo(f"wrote {out}")
