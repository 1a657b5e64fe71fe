"""`priorlab plan`: what would run and why, and what it would cost."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.text import Text

from pipeline.cli.options import AsJson, Overrides
from pipeline.cli.terminal import console, plain_table, print_json, print_wide, some_of
from pipeline.compare.power import in_words, power_of
from pipeline.config.costs import DEVICES, Utilisation, known_device
from pipeline.experiment.compose import load_recipe, load_sweep
from pipeline.experiment.config_files import available
from pipeline.experiment.graph import build_graph
from pipeline.experiment.plan_costs import Assumptions, planned_costs
from pipeline.home.plan import explained_plan
from pipeline.store.folders import Home

_AIM = 0.05
"""`plan` says what it takes to show this difference of gains."""


def plan(
    name: Annotated[str, typer.Argument(metavar="SWEEP|RECIPE", help="a file in configs/sweep or configs/recipe")],
    overrides: Overrides = None,
    costs: Annotated[bool, typer.Option("--costs", help="estimate what each stage takes: FLOPs, hours, memory, disk")] = False,
    device: Annotated[str, typer.Option(help=f"for --costs: {', '.join(DEVICES)}")] = "h100",
    devices: Annotated[
        int | None, typer.Option(min=1, help="for --costs: devices per stage (default: its processes)", show_default=False)
    ] = None,
    utilisation: Annotated[float, typer.Option(min=1e-3, max=1, help="for --costs: share of peak FLOPs in training")] = 0.4,
    sampling_utilisation: Annotated[float, typer.Option(min=1e-3, max=1, help="for --costs: the same in sampling")] = 0.1,
    vocabulary: Annotated[
        int | None, typer.Option(min=1, help="for --costs: vocabulary size, until the corpus is built", show_default=False)
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
        _show_costs(planned_costs(build_graph(planned.cells()), Home.from_environment(), assumed), as_json=as_json)
        return
    cells = list(planned.cells())
    entries = explained_plan(build_graph(cells), Home.from_environment())
    if as_json:
        print_json(entries)
        return
    table = plain_table("stage", "state", "work", "why", "cells", wrapped=("why", "cells"))
    for entry in entries:
        table.add_row(entry["stage"], entry["state"], entry["work"], Text(entry["why"]), Text(some_of(entry["cells"])))
    print_wide(table)
    to_run = sum(entry["state"] != "done" for entry in entries)
    console.print(f"{len(entries)} stages: {to_run} to run, {len(entries) - to_run} done and reused")
    expected = power_of(cells)
    if expected is not None:
        console.print(in_words(expected, _AIM), soft_wrap=not console.is_terminal)


def _show_costs(entries: list[dict[str, Any]], *, as_json: bool) -> None:
    """What each stage is, and what it takes in total and per device."""
    if as_json:
        print_json(entries)
        return
    memory = "memory per device (GiB)"
    table = plain_table("stage", "parameters", "tokens", "steps", "FLOPs", "hours", memory, "disk", wrapped=(memory,))
    for entry in entries:
        count, held = len(entry["stages"]), sum(entry["memory_gib"].values())
        parts = ", ".join(f"{name} {size:.3g}" for name, size in entry["memory_gib"].items() if size >= 0.01 * held)
        table.add_row(
            entry["stage"] if count == 1 else f"{count} x {entry['stage']}",
            f"{_short(entry['parameters'])} ({_short(entry['active_parameters'])} active)",
            _short(entry["tokens"]),
            f"{entry['steps']:,}",
            f"{entry['flops']:.2e}",
            f"{entry['hours']:,.1f} on {entry['devices']} {entry['device']}",
            Text(f"{held:,.1f}{'' if entry['fits'] else ', does not fit'}: {parts}"),
            f"{entry['stored_gib']:,.1f} GiB",
        )
    print_wide(table)


def _short(number: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.0f}"
