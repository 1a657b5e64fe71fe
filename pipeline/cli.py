"""The command line: `priorlab sweep | run | plan | status | report | resume | cancel | stage | doctor`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.compose import Sweep, available, load_recipe, load_sweep
from pipeline.errors import PriorlabError
from pipeline.graph import Graph, build_graph
from pipeline.runner import Outcome
from pipeline.slurm.queue import job_of, live_jobs
from pipeline.store import Home, status_of
from pipeline.sweeps import (
    cancel_sweep,
    compare_sweep,
    default_jobs,
    describe_plan,
    redefinition,
    rerun_stage,
    run_sweep,
    saved_sweep,
    stage_state,
)
from pipeline.view import choose_view, describe

app = typer.Typer(
    name="priorlab",
    help="How does the shape of the pre-trained token distribution decide what RL can learn? Pre-train models under several priors, "
    "run RL on each, and compare pass@k before and after.\n\nResults live below $PRIORLAB_HOME (default: ./runs).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(highlight=False)
_SHOWN_CHANGES = 5
_WIDE = 400
"""Columns that no table needs."""
errors = Console(stderr=True, highlight=False)

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
    as_json: AsJson = False,
) -> None:
    """Show what a sweep or recipe would run and what it would reuse. Runs nothing."""
    if name in available("recipe") and name not in available("sweep"):
        planned = load_recipe(name, overrides or [])
    else:
        planned = load_sweep(name, overrides or [])
    entries = describe_plan(build_graph(planned.cells()), _home())
    if as_json:
        _print_json(entries)
        return
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("stage", "state", "work", "cells"):
        table.add_column(heading, no_wrap=heading != "cells")
    for entry in entries:
        table.add_row(entry["stage"], entry["state"], entry["work"], Text(", ".join(entry["cells"])))
    _print_wide(table)
    to_run = sum(entry["state"] != "done" for entry in entries)
    console.print(f"{len(entries)} stages: {to_run} to run, {len(entries) - to_run} done and reused")


@app.command()
def status(
    name: Annotated[str | None, typer.Argument(help="a sweep (default: every stage)", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Show the stages on disk: state, progress, log."""
    home = _home()
    if name is None:
        folders = home.stages()
    else:
        graph = build_graph(_saved(name, home).cells())
        folders = [node.folder(home) for node in graph.stages.values()]
    entries: list[dict[str, Any]] = []
    jobs = live_jobs(folders)
    for folder in folders:
        progress = status_of(folder)
        state = stage_state(folder, jobs)
        log = folder.last_log()
        job = job_of(folder, jobs)
        shown = "" if state in ("done", "new") else progress.get("message") or describe(progress)
        if job is not None:
            shown = "  ".join(filter(None, [shown, f"job {job.id}" + (f" waits: {job.reason}" if job.waiting else "")]))
        entries.append(
            {
                "stage": f"{folder.path.parent.name}/{folder.path.name}",
                "state": state,
                "progress": shown,
                "log": str(log) if log else None,
                "folder": str(folder.path),
            }
        )
    if as_json:
        _print_json(entries)
        return
    if not entries:
        console.print(f"no stage below {home.path}; start with `priorlab sweep quickstart`")
        return
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("stage", "state", "progress"):
        table.add_column(heading, no_wrap=heading != "progress")
    for entry in entries:
        table.add_row(entry["stage"], entry["state"], Text(entry["progress"]))
    _print_wide(table)
    for entry in entries:
        if entry["state"] == "failed":
            console.print(Text(f"log of {entry['stage']}: {entry['log']}"), soft_wrap=True)


@app.command()
def report(
    name: Annotated[str, typer.Argument(help="a sweep that was started")],
    as_json: AsJson = False,
) -> None:
    """Write and print the comparison of a sweep, as far as it has come."""
    home = _home()
    saved = _saved(name, home)
    if not _show_comparison(saved, build_graph(saved.cells()), home, as_json=as_json):
        raise PriorlabError(f"sweep {name!r} has no finished evaluation yet; `priorlab status {name}` shows how far it is")


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
def cancel(name: Annotated[str, typer.Argument(help="a sweep that was started with cluster=slurm")]) -> None:
    """Cancel a sweep's Slurm jobs. What they have saved stays; `priorlab resume` goes on from there."""
    home = _home()
    for stage_name in cancel_sweep(_saved(name, home), home):
        console.print(Text(f"cancelled {stage_name}"), soft_wrap=True)


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
    """Check this machine: versions, devices, disk, W&B login."""
    from pipeline.doctor import examine

    findings = examine(_home())
    if as_json:
        _print_json([finding.__dict__ for finding in findings])
    else:
        for finding in findings:
            mark = "[green]ok[/]  " if finding.ok else "[red]bad[/] "
            console.print(mark, Text(f"{finding.name:<10} {finding.text}"), sep="", soft_wrap=True)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _run(chosen: Sweep, jobs: int | None) -> None:
    home = _home()
    changes = redefinition(chosen, home)
    if changes:
        more = f" (and {len(changes) - _SHOWN_CHANGES} more)" if len(changes) > _SHOWN_CHANGES else ""
        listed = "; ".join(changes[:_SHOWN_CHANGES]) + more
        errors.print(Text(f"note: sweep {chosen.name} is not what it was when last started: {listed}"), soft_wrap=True)
    with choose_view(console) as view:
        graph, outcome = run_sweep(chosen, home, jobs=jobs or default_jobs(), view=view)
    shown = _show_comparison(chosen, graph, home)
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
    blocked = sum(state.state == "blocked" for state in outcome.states)
    if blocked:
        errors.print(f"       {blocked} more waited for what failed; everything else is done", soft_wrap=True)
    raise typer.Exit(1)


def _show_comparison(chosen: Sweep, graph: Graph, home: Home, *, as_json: bool = False) -> bool:
    comparison = compare_sweep(chosen, graph, home)
    if comparison is None:
        return False
    if as_json:
        _print_json(comparison.rows)
        return True
    from pipeline.report.tables import pass_keys, terminal_table

    whole = terminal_table(comparison.rows, f"sweep {chosen.name}")
    if not console.is_terminal or Console(width=_WIDE).measure(whole).maximum <= console.width:
        tables = [whole]
    else:  # too narrow for one line per prior: one table per k
        tables = [terminal_table(comparison.rows, f"sweep {chosen.name}, {key}", [key]) for key in pass_keys(comparison.rows)]
    for table in tables:
        console.print()
        _print_wide(table)
    console.print()
    console.print(Text(f"report: {_short(comparison.report)}"), soft_wrap=True)
    return True


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _saved(name: str, home: Home) -> Sweep:
    saved = saved_sweep(name, home)
    if saved is None:
        known = sorted(path.parent.name for path in home.path.glob("sweeps/*/sweep.yaml"))
        raise PriorlabError(f"no sweep {name!r} below {home.path}; there are: {', '.join(known) or 'none'}")
    return saved


def _home() -> Home:
    return Home.from_environment()


def _print_wide(table: Table) -> None:
    """A table at its natural width when the output is no terminal, so that no cell is cut."""
    if console.is_terminal:
        console.print(table)
    else:
        Console(file=sys.stdout, width=_WIDE, highlight=False).print(table, soft_wrap=True)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def _clear_errors() -> Iterator[None]:
    try:
        yield
    except PriorlabError as error:
        errors.print(Text(f"error: {error}"), soft_wrap=True)
        sys.exit(2)
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        errors.print(Text(f"error: {error.strerror or error}{place}"), soft_wrap=True)
        sys.exit(2)


def main() -> None:
    with _clear_errors():
        app()


if __name__ == "__main__":
    main()
