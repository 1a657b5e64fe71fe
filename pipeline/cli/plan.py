"""`priorlab plan`: what would run and why, and what it would cost."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Annotated, Any

import typer
from rich.text import Text

from pipeline.cli.options import AsJson, Overrides
from pipeline.cli.terminal import console, plain_table, print_json, print_wide, some_of
from pipeline.compare.format import short
from pipeline.compare.intervals import POWER
from pipeline.compare.power import Power, in_words, power_of
from pipeline.costs.devices import DEVICES, known_device
from pipeline.costs.hours import Hours, assumed_hours, timed_hours
from pipeline.costs.interruptions import Interruptions
from pipeline.costs.plan import Assumptions, best_launches, planned_costs
from pipeline.costs.stages import GIB, Utilisation
from pipeline.errors import PriorlabError
from pipeline.experiment.compose import load_recipe, load_sweep
from pipeline.experiment.config_files import available
from pipeline.experiment.graph import build_graph, check_cells_differ
from pipeline.home.plan import explained_plan
from pipeline.store.folders import Home

_SEEDS = (2, 3, 5, 10, 20, 40)
"""`--effect` says how many problems these need."""
_ASSUMED = (
    "device", "devices", "utilisation", "sampling_utilisation", "vocabulary", "node", "link", "network", "storage", "mtbf", "price",
)  # fmt: skip
"""Options that say what estimates assume."""


def plan(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="SWEEP|RECIPE", help="a file in configs/sweep or configs/recipe")],
    overrides: Overrides = None,
    costs: Annotated[bool, typer.Option("--costs", help="estimate each stage's FLOPs, hours, memory and disk space")] = False,
    launches: Annotated[
        bool,
        typer.Option(
            "--launches", help="find the fastest ZeRO stage, micro-batch, checkpointing and engine for several numbers of devices"
        ),
    ] = False,
    device: Annotated[str, typer.Option(help=f"for --costs: {', '.join(DEVICES)}")] = "h100",
    devices: Annotated[
        int | None, typer.Option(min=1, help="for --costs: devices per stage (default: its processes)", show_default=False)
    ] = None,
    utilisation: Annotated[float, typer.Option(min=1e-3, max=1, help="for --costs: share of peak FLOPs while training computes")] = 0.4,
    sampling_utilisation: Annotated[float, typer.Option(min=1e-3, max=1, help="for --costs: the same while sampling")] = 0.1,
    vocabulary: Annotated[
        int | None, typer.Option(min=1, help="for --costs: vocabulary size, until the corpus is built", show_default=False)
    ] = None,
    node: Annotated[
        int | None, typer.Option(min=1, help="for --costs: devices per node (default: the recipe's)", show_default=False)
    ] = None,
    link: Annotated[
        float | None, typer.Option(min=0.1, help="for --costs: GB/s from a device to others on its node", show_default=False)
    ] = None,
    network: Annotated[
        float | None, typer.Option(min=0.01, help="for --costs: GB/s from a device to other nodes", show_default=False)
    ] = None,
    storage: Annotated[float, typer.Option(min=0.001, help="for --costs: GB/s of the storage for step checkpoints")] = 2.0,
    mtbf: Annotated[float, typer.Option(min=1, help="for --costs: hours between failures of one device")] = 50_000.0,
    price: Annotated[float | None, typer.Option(min=0, help="for --costs: price of one device per hour", show_default=False)] = None,
    effect: Annotated[
        float | None,
        typer.Option(
            min=1e-6, max=1, help="seeds and problems needed to detect such a difference in pass@1 after RL", show_default=False
        ),
    ] = None,
    power: Annotated[
        float | None,
        typer.Option(min=0.5, max=0.99, help="for --effect: share of sweeps that should detect it (.8)", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a sweep or recipe would run, what it would reuse, and why. Runs nothing."""
    asked = [option for option, given in (("--costs", costs), ("--launches", launches), ("--effect", effect is not None)) if given]
    _check_options(context, asked)
    planned = (load_recipe if name in available("recipe") and name not in available("sweep") else load_sweep)(name, overrides or [])
    home, cells = Home.from_environment(), list(planned.cells())
    graph = build_graph(cells)
    check_cells_differ(graph)
    links = {name: value * 1e9 for name, value in (("link", link), ("network", network)) if value is not None}
    assumed = Assumptions(
        device, replace(known_device(device), **links), devices, Utilisation(utilisation, sampling_utilisation), vocabulary, node,
        Interruptions(mtbf_hours=mtbf, storage=storage * 1e9), price,
    )  # fmt: skip
    if costs:
        found = planned_costs(graph, home, assumed)
        if as_json:
            print_json(found)
        else:
            _show_costs(found)
            _show_slow_launches(best_launches(graph, home, assumed, factors=(1,)))
        return
    if launches:
        found = best_launches(graph, home, assumed)
        (print_json if as_json else _show_launches)(found)
        return
    expected = power_of(cells, home, planned.contrasts)
    if effect is None:
        entries = explained_plan(graph, home)
        if as_json:
            print_json(entries)
        else:
            _show_plan(entries, expected)
        return
    if expected is None:
        raise PriorlabError(
            f"{name} compares no settings after RL, so it can detect no effect; add RL and an axis with at least two values"
        )
    hours = timed_hours(graph, home) if vocabulary is None else assumed_hours(graph, home, assumed)
    _show_power(expected, effect, POWER if power is None else power, hours, as_json=as_json)


def _check_options(context: typer.Context, asked: Sequence[str]) -> None:
    """Refuses options that would do nothing; `asked` are those that ask for something else than the plan."""
    options = {parameter.name: parameter.opts[0] for parameter in context.command.params if parameter.name is not None}
    given = [name for name in options if (source := context.get_parameter_source(name)) is not None and source.name == "COMMANDLINE"]
    if "power" in given and "--effect" not in asked:
        raise PriorlabError("--power does nothing without --effect; give both, e.g. --power 0.8 --effect 0.015")
    idle = [options[name] for name in given if name in _ASSUMED]
    if idle and not asked:
        raise PriorlabError(
            f"{', '.join(idle)} {'do' if len(idle) > 1 else 'does'} nothing without --costs, --launches or --effect; add one of them"
        )
    if len(asked) > 1:
        raise PriorlabError("--costs, --launches and --effect answer different questions; give one of them")


def _show_plan(entries: list[dict[str, Any]], expected: Power | None) -> None:
    """What would run and why, and what differences the sweep can be expected to show, if it compares anything."""
    table = plain_table("stage", "state", "work", "why", "cells", wrapped=("why", "cells"))
    for entry in entries:
        table.add_row(entry["stage"], entry["state"], entry["work"], Text(entry["why"]), Text(some_of(entry["cells"])))
    print_wide(table)
    to_run = sum(entry["state"] != "done" for entry in entries)
    console.print(f"{len(entries)} stages: {to_run} to run, {len(entries) - to_run} done and reused")
    if expected is not None:
        console.print(in_words(expected), soft_wrap=not console.is_terminal)


def _show_power(expected: Power, effect: float, power: float, hours: Hours | None, *, as_json: bool) -> None:
    """For several numbers of seeds, the fewest problems that show the effect, and what that takes."""
    ways = [
        {
            "seeds": seeds,
            "problems": problems,
            "samples": expected.samples,
            "hours": None if hours is None else hours.of(seeds, problems, expected.samples),
        }
        for seeds in _SEEDS
        if (problems := replace(expected, seeds=seeds).problems_for(effect, power)) is not None
    ]
    if as_json:
        print_json(
            {"effect": effect, "power": power, "comparisons": expected.comparisons, "spreads": asdict(expected.spreads), "ways": ways}
        )
        return
    table = plain_table("seeds", "problems", "samples", "hours", wrapped=())
    for way in ways:
        hours_taken = "-" if way["hours"] is None else f"{way['hours']:,.1f}"
        table.add_row(str(way["seeds"]), f"{way['problems']:,}", str(way["samples"]), hours_taken)
    if ways:
        print_wide(table)
        timed = "no hours: some kind of stage is not timed in this home yet" if hours is None else f"hours: {hours.source}"
        said = (
            f"Each shows a true difference of {effect:g} in pass@1 after RL in {power:.0%} of sweeps, with {expected.comparisons} "
            f"intervals that hold jointly ({timed})."
        )
    else:
        said = f"With up to {_SEEDS[-1]} seeds, no number of problems shows a difference of {effect:g} in {power:.0%} of sweeps."
    console.print(f"{said} Spreads from {expected.spreads.source}.", soft_wrap=not console.is_terminal)


def _show_costs(entries: list[dict[str, Any]]) -> None:
    """What each stage is, and what it takes in total and per device."""
    memory = "memory per device (GiB)"
    table = plain_table("stage", "parameters", "tokens", "steps", "FLOPs", "hours", memory, "disk", wrapped=(memory,))
    for entry in entries:
        count, held = len(entry["stages"]), entry["memory"] / GIB
        parts = ", ".join(f"{name} {size:.3g}" for name, size in entry["memory_gib"].items() if size >= 0.01 * held)
        parts += "; not all at once: the engine sleeps" * entry.get("sleep", False)
        table.add_row(
            entry["stage"] if count == 1 else f"{count} x {entry['stage']}",
            f"{short(entry['parameters'], 'K')} ({short(entry['active_parameters'], 'K')} active)",
            short(entry["tokens"], "K"),
            f"{entry['steps']:,}",
            f"{entry['flops']:.2e}",
            f"{entry['expected_hours']:,.1f} on {entry['devices']} {entry['device']}",
            Text(f"{held:,.1f}{'' if entry['fits'] else ', does not fit'}: {parts}"),
            f"{entry['stored_gib']:,.1f} GiB",
        )
    print_wide(table)
    table = plain_table(
        "stage", "hours", "computing", "sending", "waiting", "saving", "failures", "sent per step and device", "save_steps", wrapped=()
    )
    for entry in entries:
        if "saving_hours" in entry:
            spent = (entry[f"{name}_hours"] for name in ("computing", "sending", "waiting", "saving", "failure"))
            sent = ", ".join(f"{size:,.3g} GiB {what}" for what, size in entry["sent_gib"].items()) or "nothing"
            best = f"{entry['save_steps']:,} (best: {entry['best_save_steps']:,})"
            table.add_row(entry["stage"], f"{entry['expected_hours']:,.1f}", *(f"{hours:,.1f}" for hours in spent), sent, best)
    if table.row_count:
        console.print()
        print_wide(table)
    if all(entry["price"] is not None for entry in entries):
        total = sum(entry["price"] * len(entry["stages"]) for entry in entries)
        console.print(f"Total: {total:,.0f}, at the given price.")


def _show_slow_launches(entries: list[dict[str, Any]]) -> None:
    """Which stages take clearly longer than they would with another launch on as many devices."""
    for own, best in itertools.pairwise(entries):
        if own["own"] and not best["own"] and best["devices"] > 1 and best["expected_hours"] < 0.9 * own["expected_hours"]:
            engine = ""
            if "sleep" in best:
                engine = (
                    f", rl.engine.tensor_parallel={best['tensor_parallel']}, sleep={str(best['sleep']).lower()}, "
                    f"rl.gpu_memory_share={best['gpu_memory_share']}"
                )
            console.print(
                f"{own['stage']} would take {best['expected_hours']:,.1f} hours with launch.zero_stage={best['zero_stage']}, "
                f"micro_batch={best['micro_batch']}, gradient_checkpointing={str(best['gradient_checkpointing']).lower()}"
                f"{engine}; --launches shows more",
                soft_wrap=not console.is_terminal,
            )


def _show_launches(entries: list[dict[str, Any]]) -> None:
    """The recipe's launch of each training stage, and the fastest for several numbers of devices."""
    headings = ["stage", "devices", "zero_stage", "micro_batch", "checkpointing", "memory (GiB)", "hours", "device-hours"]
    priced, samples = (any(entry.get(name) is not None for entry in entries) for name in ("price", "sleep"))
    engine = ["tensor_parallel", "sleep", "gpu_memory_share"] * samples
    table = plain_table(*headings, *engine, *["price"] * priced, wrapped=())
    for entry in entries:
        table.add_row(
            entry["stage"] + " (current)" * entry["own"],
            f"{entry['devices']} {entry['device']}",
            str(entry["zero_stage"]),
            str(entry["micro_batch"]),
            "yes" if entry["gradient_checkpointing"] else "no",
            f"{entry['memory'] / GIB:,.1f}" + ("" if entry["fits"] else ", does not fit"),
            f"{entry['expected_hours']:,.1f}",
            f"{entry['expected_hours'] * entry['devices']:,.0f}",
            *(str(entry.get(name, "-")).lower() for name in engine),
            *([f"{entry['price']:,.0f}"] if priced else []),
        )
    print_wide(table)
    console.print(
        "Each line below a stage has the fastest launch that leaves a tenth of the memory free. Set it as e.g. "
        "pretrain.launch.zero_stage. No launch changes results, but in RL the number of processes and rl.engine.tensor_parallel decide "
        "which responses are drawn.",
        soft_wrap=not console.is_terminal,
    )
