"""`priorlab wandb`: send what was tracked offline to W&B, and save a view there that opens on a sweep's comparison."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from pipeline.cli.terminal import console
from pipeline.errors import PriorlabError
from pipeline.experiment.graph import Graph, build_graph
from pipeline.run.sweeps import known_sweep, summary_run_id
from pipeline.store.folders import Home, StageFolder
from pipeline.tracking.runs import logged_in, run_id

if TYPE_CHECKING:
    from pathlib import Path

    from wandb_workspaces.workspaces import Workspace

app = typer.Typer(name="wandb", help="Send offline runs to W&B, or save a view of a sweep there.", no_args_is_help=True)
_AT_ONCE = 50
"""Runs handed to one call of W&B's own command."""


@app.command()
def sync(
    name: Annotated[str | None, typer.Argument(help="a sweep (default: all of the home)", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only list the runs that wait")] = False,
) -> None:
    """Upload runs that were tracked offline; what was sent before, or is still being written, is left out."""
    waiting = waiting_runs(Home.from_environment(), name)
    if dry_run:
        for run in waiting:
            console.print(Text(str(run)), soft_wrap=True)
    if dry_run or not waiting:
        console.print(f"{len(waiting)} offline runs wait")
        return
    _require_login(f"{len(waiting)} offline runs wait")
    for start in range(0, len(waiting), _AT_ONCE):
        batch = waiting[start : start + _AT_ONCE]
        subprocess.run([sys.executable, "-m", "wandb", "sync", *map(str, batch)], check=False)
        left = [run for run in batch if not _sent(run)]  # its exit status is 0 also where a run failed: the marks tell
        if left:
            still = len(left) + len(waiting) - start - len(batch)
            raise PriorlabError(
                f"W&B did not take all runs (its message is above): {still} of {len(waiting)} wait, the first is {left[0]}; the same "
                "command sends the rest"
            )


@app.command()
def workspace(
    name: Annotated[str, typer.Argument(help="a sweep that was started")],
    entity: Annotated[str | None, typer.Option(help="user or team (default: tracking.entity of the sweep)", show_default=False)] = None,
) -> None:
    """Save a view in W&B: gains, pass@k, RL against steps and rollouts, pre-training against tokens, for this sweep's runs."""
    graph = build_graph(known_sweep(name, Home.from_environment()).cells())
    tracking = graph.cells[0].cell.recipe.tracking
    owner = entity or tracking.entity
    if owner is None:
        raise PriorlabError("W&B keeps views below a user or a team: give --entity NAME, or set tracking.entity in the recipe")
    _require_login("a view is saved on W&B's server")
    view = comparison_workspace(name, owner, tracking.project, graph)
    try:
        saved = view.save()
    except Exception as error:  # W&B's client raises its own errors, those of its transport, and KeyErrors for an answer it misses
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise PriorlabError(f"W&B did not save the view in {owner}/{tracking.project}: {reason}") from error
    console.print(Text(f"view: {saved.url}"), soft_wrap=True)


def waiting_runs(home: Home, sweep: str | None) -> list[Path]:
    """Folders of offline runs that W&B has not marked as sent: of one sweep and its stages, or of the whole home.

    Those of a stage or sweep that runs are left out: W&B would end them as failed.
    """
    if sweep is None:
        folders = [*home.path.glob("stages/*/*"), *home.path.glob("sweeps/*")]
    else:
        graph = build_graph(known_sweep(sweep, home).cells())
        folders = [*(node.folder(home).path for node in graph.stages.values()), home.sweep(sweep)]
    begun = [folder for folder in folders if any(folder.glob("wandb/offline-run-*")) and not StageFolder(folder).is_held()]
    return [run for folder in begun for run in sorted(folder.glob("wandb/offline-run-*")) if not _sent(run)]


def _sent(run: Path) -> bool:
    return any(run.glob("*.wandb.synced"))


def comparison_workspace(sweep: str, entity: str, project: str, graph: Graph) -> Workspace:
    """The view as an object that is not saved yet.

    It holds the runs of the sweep's stages by their ids: a stage that several sweeps share has the group of the one that ran it first.
    """
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as workspaces

    def lines(x: str, *metrics: str) -> list[panels.LinePlot]:
        return [panels.LinePlot(x=x, y=[metric], title=metric) for metric in metrics]

    def section(title: str, *shown: list[panels.LinePlot] | list[panels.WeavePanelSummaryTable]) -> workspaces.Section:
        return workspaces.Section(name=title, panels=[panel for group in shown for panel in group], is_open=True)

    runs = [*map(run_id, graph.stages), summary_run_id(sweep, graph)]
    tables = [panels.WeavePanelSummaryTable(table_name=table) for table in ("gains", "differences", "pass_at_k_table")]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=f"{sweep}: RL gains by prior",
        sections=[
            section("Comparison", tables),
            section("RL, at equal steps", lines("step", "reward_raw", "entropy", "completions/mean_length", "frac_reward_zero_std")),
            section("RL, at equal rollouts", lines("rollouts_generated", "validation/pass@1", "reward_raw")),
            section("Pre-training", lines("tokens", "perplexity", "entropy", "head_mass", "tail_mass")),
        ],
        runset_settings=workspaces.RunsetSettings(filters=[workspaces.Metric("ID").isin(runs)]),
    )


def _require_login(why: str) -> None:
    if not logged_in():
        raise PriorlabError(f"you are not logged in to W&B ({why}): run `wandb login`, or set WANDB_API_KEY")
