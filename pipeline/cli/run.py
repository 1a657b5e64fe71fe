"""The commands that start stages: `sweep`, `run`, `resume`, `stage`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from pipeline.cli.compare import show_comparison
from pipeline.cli.options import Jobs, Overrides, Rename
from pipeline.cli.terminal import console, errors
from pipeline.cli.view import choose_view
from pipeline.compare.settings import declared_pairs, planned_settings
from pipeline.experiment.compose import Sweep, load_recipe, load_sweep
from pipeline.experiment.saved import redefinition, saved_sweep
from pipeline.run.state import Outcome
from pipeline.run.sweeps import rerun_stage, run_sweep
from pipeline.store.folders import Home

_SHOWN_CHANGES = 5


def sweep(
    name: Annotated[str, typer.Argument(metavar="SWEEP", help="a file in configs/sweep, or the path of a .yaml")],
    overrides: Overrides = None,
    jobs: Jobs = None,
    rename: Rename = None,
) -> None:
    """Run a sweep: all cells, each stage once. Repeat the command to resume it or to show its results."""
    _run(load_sweep(name, overrides or [], rename=rename), jobs)


def run(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="a file in configs/recipe, or the path of a .yaml")],
    overrides: Overrides = None,
    jobs: Jobs = None,
    rename: Rename = None,
) -> None:
    """Run one recipe from its corpus to the evaluation after RL."""
    _run(load_recipe(recipe, overrides or [], rename=rename), jobs)


def resume(
    name: Annotated[
        str,
        typer.Argument(metavar="SWEEP|STAGE", help="a sweep that was started, or a stage (folder name, or digits of its fingerprint)"),
    ],
    jobs: Jobs = None,
) -> None:
    """Resume a sweep as it was last started, or one stage and what depends on it."""
    home = Home.from_environment()
    saved = saved_sweep(name, home)
    if saved is not None:
        _run(saved, jobs)
        return
    _rerun(name, home, force=False, alone=False, jobs=jobs)


def stage(
    name: Annotated[
        str, typer.Argument(metavar="STAGE", help="folder name, path, or digits of its fingerprint; `priorlab status` lists stages")
    ],
    force: Annotated[bool, typer.Option("--force", help="discard its results and all computed from them, and run again")] = False,
    alone: Annotated[bool, typer.Option("--alone", help="do not run what depends on it")] = False,
    jobs: Jobs = None,
) -> None:
    """Run one stage from its spec, then what depends on it."""
    _rerun(name, Home.from_environment(), force=force, alone=alone, jobs=jobs)


def _run(chosen: Sweep, jobs: int | None) -> None:
    home = Home.from_environment()
    if chosen.contrasts:
        declared_pairs(planned_settings(list(chosen.cells())), chosen.contrasts)  # refuse now what the comparison would
    changes = redefinition(chosen, home)
    if changes:
        more = f" (and {len(changes) - _SHOWN_CHANGES} more)" if len(changes) > _SHOWN_CHANGES else ""
        listed = "; ".join(changes[:_SHOWN_CHANGES]) + more
        kept = "`priorlab gc` deletes what only the old one used; --name keeps both"
        errors.print(Text(f"note: sweep {chosen.name} has changed since it was last started: {listed}. {kept}"), soft_wrap=True)
    with choose_view(console) as view:
        graph, outcome = run_sweep(chosen, home, jobs=jobs, view=view)
    shown = show_comparison(chosen, graph, home)
    if not shown and outcome.complete:
        console.print("all stages are done")
    _exit_by(outcome, f"priorlab resume {chosen.name}")


def _rerun(name: str, home: Home, *, force: bool, alone: bool, jobs: int | None) -> None:
    folder = home.find_stage(name)
    with choose_view(console) as view:
        outcome = rerun_stage(folder, home, force=force, alone=alone, jobs=jobs, view=view)
    for state in outcome.states:
        console.print(Text(f"{state.state:8} {state.node.name}"), soft_wrap=True)
    _exit_by(outcome, f"priorlab resume {name}")


def _exit_by(outcome: Outcome, again: str) -> None:
    _tell_failures(outcome, again)
    if outcome.left:
        name = again.split()[-1]
        console.print(
            f"{outcome.left} jobs continue in Slurm; `{again}` waits for them again, `priorlab status {name}` shows them, "
            f"`priorlab cancel {name}` cancels them",
            soft_wrap=True,
        )
        raise typer.Exit(130 if outcome.interrupted else 1 if outcome.failed else 0)
    if outcome.interrupted:
        errors.print(f"interrupted; `{again}` continues where it stopped", soft_wrap=True)
        raise typer.Exit(130)
    if not outcome.complete:
        raise typer.Exit(1)


def _tell_failures(outcome: Outcome, again: str) -> None:
    for failed in outcome.failed:
        log = f"\n       log: {failed.log}" if failed.log else ""
        errors.print(Text(f"error: {failed.node.name} failed: {failed.reason}{log}"), soft_wrap=True)
    for cancelled in outcome.cancelled:
        errors.print(Text(f"note: {cancelled.node.name} was cancelled; `{again}` continues where it stopped"), soft_wrap=True)
    blocked = sum(state.state == "blocked" for state in outcome.states)
    if blocked:
        rest = "; everything else is done" if not outcome.left and not outcome.interrupted else ""
        errors.print(f"       blocked by failed or cancelled stages: {blocked} more{rest}", soft_wrap=True)
