"""The command `hf-zip merge`."""

from typing import Annotated

import typer

from hf_zip.errors import HfZipError
from hf_zip.options import (
    AllowPickle,
    Branch,
    Budget,
    Calibration,
    CreatePr,
    Evaluation,
    Labels,
    Lane,
    Out,
    OwnBase,
    OwnCalibration,
    Private,
    Samples,
    StopAt,
    Token,
    Validation,
)


def merge(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE.yaml | MODEL MODEL …",
            help="A recipe; or local folders and Hub ids (org/name[@revision]).",
        ),
    ],
    out: Out,
    method: Annotated[
        str | None, typer.Option(help="Merge method; `hf-zip methods` lists them.")
    ] = None,
    calibration: Calibration = None,
    own_calibration: OwnCalibration = None,
    samples: Samples = None,
    evaluation: Evaluation = None,
    base: Annotated[
        str | None, typer.Option(help="The model that the others were fine-tuned from.")
    ] = None,
    own_base: OwnBase = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Name of a model's task; once per model, in order.")
    ] = None,
    labels: Labels = None,
    stop_at: StopAt = None,
    budget: Budget = None,
    validation: Validation = None,
    dtype: Annotated[str | None, typer.Option(help="Precision of the written weights.")] = None,
    output: Annotated[
        str | None,
        typer.Option(metavar="model | lora", help="What is written: a model, or a LoRA of --base."),
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of that LoRA.")] = None,
    max_shard_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Where another file of weights begins, such as 5GB."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Decides every random choice.")] = None,
    license_: Annotated[
        str | None,
        typer.Option("--license", help="Licence that the card states, where models differ."),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one key, such as seed=1."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Merge despite a finding that may be forced.")
    ] = False,
    push_to_hub: Annotated[
        str | None,
        typer.Option(metavar="USER/REPO", help="Upload the written merge to the Hub; see push."),
    ] = None,
    private: Private = False,
    create_pr: CreatePr = False,
    revision: Branch = None,
    token: Token = None,
    allow_pickle: AllowPickle = False,
    lane: Lane = "auto",
) -> None:
    """Merge models and write one, with its report and card."""
    options = {
        "--method": method,
        "--calibration": calibration,
        "--own-calibration": own_calibration,
        "--samples": samples,
        "--evaluation": evaluation,
        "--base": base,
        "--own-base": own_base,
        "--task": task,
        "--labels": labels,
        "--stop-at": stop_at,
        "--budget": budget,
        "--validation": validation,
        "--dtype": dtype,
        "--output": output,
        "--rank": rank,
        "--max-shard-size": max_shard_size,
        "--seed": seed,
        "--license": license_,
    }
    from hf_zip.arguments import recipe_from

    recipe = recipe_from(models, options).with_overrides(assignments or [])

    from hf_zip.hub import Destination, check_login, upload
    from hf_zip.pipeline import merge as run
    from hf_zip.tables import table

    destination = None
    if push_to_hub is not None:
        destination = Destination(push_to_hub, private, revision, create_pr, token)
        check_login(destination)
    elif private or create_pr or revision or token:
        raise HfZipError(
            "--private, --create-pr, --revision and --token say how to upload the merge; give "
            "--push-to-hub USER/REPO too"
        )
    result = run(recipe, out=out, force=force, allow_pickle=allow_pickle, lane=lane)
    if result is None or not result.is_main_process:
        return
    if result.report.evaluation is not None:
        typer.echo(table(result.report.evaluation))
    typer.echo(f"wrote {out}")
    if destination is not None:
        typer.echo(f"pushed to {upload(out, result.report, destination)}")
