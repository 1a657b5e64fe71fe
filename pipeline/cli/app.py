"""The command line: what plans, runs and compares. Commands that look at a home and tidy it are in `pipeline.cli.home`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.text import Text

from pipeline.cli import compare as comparing
from pipeline.cli import home as commands
from pipeline.cli import wandb
from pipeline.cli.compare import show_comparison
from pipeline.cli.terminal import console, errors, plain_table, print_json, print_wide, some_of
from pipeline.cli.view import choose_view
from pipeline.compare.power import in_words, precision
from pipeline.config.costs import DEVICES, Utilisation, known_device
from pipeline.errors import PriorlabError
from pipeline.experiment.compose import Sweep, load_recipe, load_sweep
from pipeline.experiment.config_files import available
from pipeline.experiment.graph import build_graph
from pipeline.experiment.plan_costs import Assumptions, planned_costs, show_costs
from pipeline.home.plan import explained_plan
from pipeline.run.runner import Outcome
from pipeline.run.sweeps import (
    default_jobs,
    redefinition,
    rerun_stage,
    run_sweep,
    saved_sweep,
)
from pipeline.store.folders import Home

app = typer.Typer(
    name="priorlab",
    help="How does the shape of the pre-trained token distribution decide what RL can learn? Pre-train models under several priors, "
    "run RL on each, and compare pass@k before and after.\n\nResults live below $PRIORLAB_HOME (default: ./runs).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_SHOWN_CHANGES = 5
_AIM = 0.05
"""Difference of gains for which `plan` says what it takes to show it."""

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="changes of the config, e.g. rl.steps=50 prior.beta=-0.1 axes.seed=[0,1,2]; values are YAML",
        show_default=False,
    ),
]
Jobs = Annotated[int | None, typer.Option(min=1, help="stages at a time (default: one per GPU, or per CPU core)", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="machine-readable output")]


@app.command()
def sweep(
    name: Annotated[str, typer.Argument(help="a file of configs/sweep, or a path to a .yaml")],
    overrides: Overrides = None,
    jobs: Jobs = None,
    rename: Annotated[str | None, typer.Option("--name", help="call the results something else", show_default=False)] = None,
) -> None:
    """Run a sweep: all cells, each stage once. The same command again resumes it, or shows its results."""
    _run(load_sweep(name, overrides or [], rename=rename), jobs)


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="a file of configs/recipe, or a path to a .yaml")],
    overrides: Overrides = None,
    jobs: Jobs = None,
) -> None:
    """Run one recipe from its corpus to the evaluation after RL."""
    _run(load_recipe(recipe, overrides or []), jobs)


@app.command()
def plan(
    name: Annotated[str, typer.Argument(help="a file of configs/sweep or configs/recipe")],
    overrides: Overrides = None,
    costs: Annotated[bool, typer.Option("--costs", help="what each stage will take: FLOPs, hours, memory, disk")] = False,
    device: Annotated[str, typer.Option(help=f"for --costs: {', '.join(DEVICES)}")] = "h100",
    devices: Annotated[
        int | None, typer.Option(min=1, help="for --costs: per stage, for its hours (default: its processes)", show_default=False)
    ] = None,
    utilisation: Annotated[float, typer.Option(min=1e-3, max=1, help="for --costs: share of the peak that training reaches")] = 0.4,
    sampling_utilisation: Annotated[float, typer.Option(min=1e-3, max=1, help="the same of sampling")] = 0.1,
    vocabulary: Annotated[
        int | None, typer.Option(min=1, help="for --costs: tokens of the tokenizer, until the corpus is made", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a sweep or recipe would run, what it would reuse, and why. Runs nothing."""
    if name in available("recipe") and name not in available("sweep"):
        planned = load_recipe(name, overrides or [])
    else:
        planned = load_sweep(name, overrides or [])
    if costs:
        assumed = Assumptions(device, known_device(device), devices, Utilisation(utilisation, sampling_utilisation), vocabulary)
        show_costs(planned_costs(build_graph(planned.cells()), _home(), assumed), as_json=as_json)
        return
    cells = list(planned.cells())
    entries = explained_plan(build_graph(cells), _home())
    if as_json:
        print_json(entries)
        return
    table = plain_table("stage", "state", "work", "why", "cells", wrapped=("why", "cells"))
    for entry in entries:
        table.add_row(entry["stage"], entry["state"], entry["work"], Text(entry["why"]), Text(some_of(entry["cells"])))
    print_wide(table)
    to_run = sum(entry["state"] != "done" for entry in entries)
    console.print(f"{len(entries)} stages: {to_run} to run, {len(entries) - to_run} done and reused")
    expected = precision(cells)
    if expected is not None:
        console.print(in_words(expected, _AIM), soft_wrap=not console.is_terminal)


@app.command()
def resume(
    name: Annotated[str, typer.Argument(help="a sweep that was started, or a stage (folder name, or digits of its fingerprint)")],
    jobs: Jobs = None,
) -> None:
    """Go on with a sweep as it was last started, or with one stage and what depends on it."""
    home = _home()
    saved = saved_sweep(name, home)
    if saved is not None:
        _run(saved, jobs)
        return
    _rerun(name, home, force=False, alone=False, jobs=jobs)


@app.command()
def stage(
    name: Annotated[str, typer.Argument(help="folder name, path, or digits of the fingerprint; `priorlab status` lists them")],
    force: Annotated[bool, typer.Option("--force", help="forget its results, and those computed from them, and run again")] = False,
    alone: Annotated[bool, typer.Option("--alone", help="do not run what depends on it")] = False,
    jobs: Jobs = None,
) -> None:
    """Run one stage from its spec, then what depends on it."""
    _rerun(name, _home(), force=force, alone=alone, jobs=jobs)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check this machine: versions, devices, disk, W&B login, Slurm."""
    from pipeline.home.doctor import examine

    findings = examine(_home())
    if as_json:
        print_json([finding.__dict__ for finding in findings])
    else:
        for finding in findings:
            mark = "[green]ok[/]  " if finding.ok else "[red]bad[/] "
            console.print(mark, Text(f"{finding.name:<10} {finding.text}"), sep="", soft_wrap=True)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


comparing.add_to(app)
commands.add_to(app)
app.add_typer(wandb.app)


def _run(chosen: Sweep, jobs: int | None) -> None:
    home = _home()
    changes = redefinition(chosen, home)
    if changes:
        more = f" (and {len(changes) - _SHOWN_CHANGES} more)" if len(changes) > _SHOWN_CHANGES else ""
        listed = "; ".join(changes[:_SHOWN_CHANGES]) + more
        errors.print(Text(f"note: sweep {chosen.name} is not what it was when last started: {listed}"), soft_wrap=True)
    with choose_view(console) as view:
        graph, outcome = run_sweep(chosen, home, jobs=jobs or default_jobs(), view=view)
    shown = show_comparison(chosen, graph, home)
    if not shown and outcome.complete:
        console.print("all stages are done")
    _exit_by(outcome, f"priorlab resume {chosen.name}")


def _rerun(name: str, home: Home, *, force: bool, alone: bool, jobs: int | None) -> None:
    folder = home.find_stage(name)
    with choose_view(console) as view:
        outcome = rerun_stage(folder, home, force=force, alone=alone, jobs=jobs or default_jobs(), view=view)
    for state in outcome.states:
        console.print(Text(f"{state.state:8} {state.node.name}"), soft_wrap=True)
    _exit_by(outcome, f"priorlab resume {name}")


def _exit_by(outcome: Outcome, again: str) -> None:
    if outcome.left:
        name = again.split()[-1]
        console.print(
            f"{outcome.left} jobs go on in Slurm; `{again}` waits for them again, `priorlab status {name}` shows them, "
            f"`priorlab cancel {name}` cancels them",
            soft_wrap=True,
        )
        raise typer.Exit(130 if outcome.interrupted else 0)
    if outcome.interrupted:
        errors.print(f"interrupted; `{again}` goes on where it stopped", soft_wrap=True)
        raise typer.Exit(130)
    if outcome.complete:
        return
    for failed in outcome.failed:
        log = f"\n       log: {failed.log}" if failed.log else ""
        errors.print(Text(f"error: {failed.node.name} failed: {failed.reason}{log}"), soft_wrap=True)
    for cancelled in outcome.cancelled:
        errors.print(Text(f"note: {cancelled.node.name} was cancelled; `{again}` goes on where it stopped"), soft_wrap=True)
    blocked = sum(state.state == "blocked" for state in outcome.states)
    if blocked:
        errors.print(f"       {blocked} more waited for what failed or was cancelled; everything else is done", soft_wrap=True)
    raise typer.Exit(1)


def _home() -> Home:
    return Home.from_environment()


@contextmanager
def _clear_errors() -> Iterator[None]:
    try:
        yield
    except PriorlabError as error:
        errors.print(Text(f"error: {error}"), soft_wrap=True)
        sys.exit(2)
    except BrokenPipeError:  # `priorlab logs ... | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        errors.print(Text(f"error: {error.strerror or error}{place}"), soft_wrap=True)
        sys.exit(2)


def main() -> None:
    with _clear_errors():
        app()
