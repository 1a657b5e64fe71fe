"""`priorlab wandb`: upload runs tracked offline to W&B, and save a view there that opens on a sweep's comparison."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from pipeline.cli.terminal import console, errors, some_of
from pipeline.errors import PriorlabError
from pipeline.experiment.graph import build_graph
from pipeline.experiment.saved import known_sweep
from pipeline.store.folders import Home
from pipeline.tracking.runs import logged_in
from pipeline.tracking.sync import send, waiting_runs
from pipeline.tracking.workspace import comparison_workspace

app = typer.Typer(name="wandb", help="Upload offline runs to W&B, or save a view of a sweep there.", no_args_is_help=True)


@app.command()
def sync(
    name: Annotated[
        str | None, typer.Argument(metavar="SWEEP", help="only runs of this sweep (default: all runs)", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only list the pending runs")] = False,
) -> None:
    """Upload runs tracked offline; skip those already sent or still being written."""
    waiting = waiting_runs(Home.from_environment(), name)
    if dry_run:
        for run in waiting:
            console.print(Text(str(run)), soft_wrap=True)
    if dry_run or not waiting:
        console.print(f"{len(waiting)} offline runs wait")
        return
    _require_login(f"{len(waiting)} offline runs wait")
    cut_short = send(waiting)
    if cut_short:
        named = some_of([str(run) for run in cut_short])
        errors.print(
            Text(f"note: the logs of killed stages end early; what can be read was sent, and will not be sent again: {named}"),
            soft_wrap=True,
        )


@app.command()
def workspace(
    name: Annotated[str, typer.Argument(metavar="SWEEP", help="a sweep that was started")],
    entity: Annotated[str | None, typer.Option(help="user or team (default: tracking.entity of the sweep)", show_default=False)] = None,
) -> None:
    """Save a view of a sweep's runs in W&B: gains, pass@k, RL by steps and by rollouts, pre-training by tokens."""
    graph = build_graph(known_sweep(name, Home.from_environment()).cells())
    tracking = graph.cells[0].cell.recipe.tracking
    owner = entity or tracking.entity
    if owner is None:
        raise PriorlabError("a view in W&B belongs to a user or a team: give --entity NAME, or set tracking.entity in the recipe")
    _require_login("a view is saved on W&B's server")
    view = comparison_workspace(name, owner, tracking.project, graph)
    try:
        saved = view.save()
    except Exception as error:  # W&B's client raises its own errors, those of its transport, and KeyErrors for an answer it misses
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise PriorlabError(f"W&B did not save the view in {owner}/{tracking.project}: {reason}") from error
    console.print(Text(f"view: {saved.url}"), soft_wrap=True)


def _require_login(why: str) -> None:
    if not logged_in():
        raise PriorlabError(f"you are not logged in to W&B ({why}): run `wandb login`, or set WANDB_API_KEY")
