"""The commands that show results: the comparison of one sweep, and of two with each other."""

from __future__ import annotations

import csv
import io
import math
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from pipeline.cli.options import AsJson
from pipeline.cli.terminal import console, errors, fits, print_json, print_wide, results_table, some_of
from pipeline.compare.evaluations import load_evaluations
from pipeline.compare.findings import Findings, findings
from pipeline.compare.settings import Setting, planned_settings
from pipeline.compare.starts import START
from pipeline.compare.summary import CONTRASTS, summary
from pipeline.compare.verdict import not_finite
from pipeline.errors import PriorlabError
from pipeline.experiment.compose import Sweep
from pipeline.experiment.graph import Graph, build_graph
from pipeline.experiment.saved import known_sweep
from pipeline.report.comparison import compare_sweep
from pipeline.store.folders import Home

AsCsv = Annotated[bool, typer.Option("--csv", help="print results.csv: every metric of every cell, with intervals")]


def report(
    name: Annotated[str, typer.Argument(metavar="SWEEP", help="a sweep that was started")],
    sort: Annotated[
        str | None,
        typer.Option(
            help="sort rows by setting, or by entropy, perplexity, before@K, after@K, gain@K (largest first)", show_default=False
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option("--filter", help="only settings whose name has this text; the verdict covers all", show_default=False),
    ] = None,
    bayes: Annotated[bool, typer.Option("--bayes", help="pass@1 gains with credible intervals for exactly these problems")] = False,
    unpooled: Annotated[
        bool,
        typer.Option("--unpooled", help="intervals from each setting's own spread over seeds, not pooled; files are unchanged"),
    ] = False,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Write and print a sweep's comparison, from the results so far."""
    idle = {
        "--json": as_csv and as_json,
        "--sort": as_csv and sort is not None,
        "--bayes": (as_csv or as_json) and bayes,
        "--unpooled": as_csv and unpooled,
    }
    for option in (option for option, given in idle.items() if given):
        raise PriorlabError(f"{option} does not change what {'--csv' if as_csv else '--json'} prints; drop one of the two")
    home = Home.from_environment()
    saved = known_sweep(name, home)
    graph = build_graph(saved.cells())
    found = compare_sweep(saved, graph, home)
    if found is None:
        raise PriorlabError(f"sweep {name!r} has no finished evaluation yet; `priorlab status {name}` shows its progress")
    chosen = _chosen(planned_settings([plan.cell for plan in graph.cells]), only)
    if as_csv:
        sys.stdout.write(_csv(home.sweep(name) / "results.csv", chosen))
        return
    whole = summary(_findings(saved, graph, home, pooled=False), home) if unpooled else found
    shown = _of(chosen, whole, sort)
    if not shown["rows"]:
        bad = [f"{evaluation} ({', '.join(what)})" for evaluation, what in shown["not_finite"].items()]
        raise PriorlabError(
            f"sweep {name!r} has no finished evaluation before RL yet{' in these settings' if only else ''}; `priorlab "
            f"status {name}` shows its progress, and --csv has the intermediate checkpoints"
            + (f". Not finite, so left out: {some_of(bad)}" if bad else "")
        )
    if as_json:
        print_json(shown)
        return
    _show(name, shown, home, bayes=bayes, filtered=only is not None)


def compare(
    first: Annotated[str, typer.Argument(metavar="FIRST", help="a sweep that was started")],
    second: Annotated[str, typer.Argument(metavar="SECOND", help="the sweep to compare with it")],
    as_json: AsJson = False,
) -> None:
    """Compare two sweeps: levels after RL and gains, second minus first, per setting, paired per problem and seed."""
    from pipeline.compare.two_sweeps import compare_across

    home = Home.from_environment()
    sweeps = [known_sweep(name, home) for name in (first, second)]
    both = [_findings(one, build_graph(one.cells()), home) for one in sweeps]
    for name, one in zip((first, second), both, strict=True):
        for sentence in not_finite(one.not_finite):
            errors.print(Text(f"note: {name}: {sentence}"), soft_wrap=True)
    levels, gains = (compare_across(kind, (first, second), *both) for kind in ("level", "gain"))
    if as_json:
        print_json({"levels": [one.as_dict() for one in levels], "differences": [one.as_dict() for one in gains]})
        return
    for found, what in ((levels, "after RL"), (gains, "gain")):
        _show_contrasts([one.as_dict() for one in found], f"{what}: {second} minus {first} [95%, jointly]")
        told = [one.interval for one in found if not math.isnan(one.interval.low)]
        said = f"{sum(one.shown for one in told)} of {len(told)} intervals exclude 0; all hold jointly at 95%"
        console.print(f"\n{said if told else 'no intervals: the same on every problem, or too few problems'}", soft_wrap=True)


def _findings(sweep: Sweep, graph: Graph, home: Home, *, pooled: bool = True) -> Findings:
    return findings([plan.cell for plan in graph.cells], load_evaluations(graph, home), sweep.contrasts, pooled=pooled)


def show_comparison(sweep: Sweep, graph: Graph, home: Home) -> bool:
    """Write and print the comparison; False while nothing is evaluated."""
    found = compare_sweep(sweep, graph, home)
    if found is None:
        return False
    _show(sweep.name, found, home)
    return True


def _show(name: str, summary: dict[str, Any], home: Home, *, bayes: bool = False, filtered: bool = False) -> None:
    from pipeline.report.tables import comparison, mean_over, on_sets, pass_keys

    rows, sets = summary["rows"], summary["sets"]
    whole = results_table(f"sweep {name}", *comparison(rows, bayes=bayes))
    apart = [] if fits(whole) else pass_keys(rows)  # too narrow for one line per setting: one table per k
    for table in [results_table(f"sweep {name}, {key}", *comparison(rows, [key], bayes=bayes)) for key in apart] or [whole]:
        console.print()
        print_wide(table)
    if summary["declared"]:
        _show_contrasts(summary["declared"], "declared contrasts, after RL [95%, jointly]")
    if summary["levels"]:
        _show_contrasts(summary["levels"], "after RL, compared [95%, jointly]")
    if summary["starts"]:
        _show_starts(name, summary["starts"])
    if sets:
        console.print()
        console.print(Text(mean_over(sets["rows"])), soft_wrap=not console.is_terminal)
        for key in dict.fromkeys(pass_keys(sets["rows"])[i] for i in (0, -1)):  # the report has those in between
            console.print()
            print_wide(results_table(f"sweep {name}, {key} on each evaluation set", *on_sets(sets["rows"], [key]), named=2))
    console.print()
    if filtered:
        console.print("over all settings:")
    for sentence in summary["verdict"]:
        console.print(Text(f"- {sentence}"), soft_wrap=not console.is_terminal)
    console.print()
    console.print(Text(f"report: {_short(home.sweep(name) / 'report.html')}"), soft_wrap=True)


def _show_starts(name: str, found: dict[str, Any]) -> None:
    from pipeline.report.tables import contrast_metrics, matched, pass_keys, starts

    for key in pass_keys(found["rows"])[:1]:
        console.print()
        print_wide(results_table(f"sweep {name}, {key} by where RL starts", *starts(found["rows"], [key])))
    for metric in contrast_metrics(found["matched"])[:1]:
        console.print()
        equal = matched([one for one in found["matched"] if one["metric"] == metric])
        print_wide(results_table("after RL, from matched bases, compared [95%, jointly]", *equal))


def _show_contrasts(differences: list[dict[str, Any]], title: str) -> None:
    """One line per pair of settings, and as many metrics side by side as the terminal is wide enough for."""
    from pipeline.report.tables import contrast_metrics, contrasts

    def table(metrics: list[str]) -> Table:
        return results_table(title, *contrasts([one for one in differences if one["metric"] in metrics]))

    groups: list[list[str]] = []
    for metric in contrast_metrics(differences):
        if groups and fits(table([*groups[-1], metric])):
            groups[-1].append(metric)
        else:
            groups.append([metric])
    for metrics in groups:
        console.print()
        print_wide(table(metrics))


def _chosen(of_sweep: list[Setting], only: str | None) -> list[Setting]:
    chosen = [setting for setting in of_sweep if only is None or only.lower() in setting.name.lower()]
    if not chosen:
        raise PriorlabError(f"--filter {only!r} matches no setting; there are: {some_of([setting.name for setting in of_sweep])}")
    return chosen


def _of(chosen: list[Setting], summary: dict[str, Any], sort: str | None) -> dict[str, Any]:
    """The summary with rows and differences of the chosen settings only."""
    names = {setting.name for setting in chosen}
    rows = [row for row in summary["rows"] if row["setting"] in names]
    if sort == "setting":
        rows.sort(key=lambda row: str(row["setting"]))
    elif sort is not None:
        rows.sort(key=lambda row: _sort_value(row, sort), reverse=True)
    contrasts = {kind: [one for one in summary[kind] if names & {one["setting"], one["reference"]}] for kind in CONTRASTS}
    of_settings: dict[str, Any] = {
        key: [one for one in summary[key] if one["setting"] in names] for key in ("temperatures", "problems")
    }
    sets, starts = summary["sets"], summary["starts"]
    if starts:
        curves = {setting.without(START).name for setting in chosen}
        of_settings["starts"] = {key: [one for one in starts[key] if one["setting"] in curves] for key in starts}
    if sets:
        kept = {key: [one for one in sets[key] if names & {one["setting"], one.get("reference")}] for key in sets}
        of_settings["sets"] = kept | {"rows": [row for row in sets["rows"] if row["setting"] in names]}
    return summary | {"rows": rows} | contrasts | of_settings


def _sort_value(row: dict[str, Any], sort: str) -> float:
    """The number to sort by; settings that lack it come last."""
    side, at, k = sort.partition("@")
    if at and side in ("before", "after", "gain") and f"pass@{k}" in row:
        interval = row[f"pass@{k}"][side]
    elif sort in ("entropy", "perplexity"):
        interval = row[sort]
    else:
        ks = "|".join(key.removeprefix("pass@") for key in row if key.startswith("pass@"))
        raise PriorlabError(
            f"--sort is {sort!r}; it can be setting, entropy, perplexity, or before@K, after@K, gain@K with K one of {ks}"
        )
    return float("-inf") if interval is None else float(interval["value"])


def _csv(file: Path, chosen: list[Setting]) -> str:
    """results.csv, with only the rows of the chosen settings' cells."""
    cells = {cell.id for setting in chosen for cell in setting.cells}
    head, *rows = csv.reader(io.StringIO(file.read_text(encoding="utf-8")))
    kept, column = io.StringIO(), head.index("cell")
    csv.writer(kept, lineterminator="\n").writerows([head, *(row for row in rows if row[column] in cells)])
    return kept.getvalue()


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
