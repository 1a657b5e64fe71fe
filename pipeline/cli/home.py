"""The commands that inspect and tidy a home: parsing and printing only."""

from __future__ import annotations

import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated

import typer
from rich import filesize
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.cli.options import AsJson
from pipeline.cli.terminal import console, errors, plain_table, print_json, print_wide
from pipeline.cli.view import choose_view
from pipeline.errors import PriorlabError
from pipeline.home import adopt as adopting
from pipeline.home import cancel as cancelling
from pipeline.home import garbage
from pipeline.home.diff import compare
from pipeline.home.logs import find_log, read_log
from pipeline.home.status import STATES, StageReport, folders_of, report_on
from pipeline.run.backends import jobs_of
from pipeline.store.folders import Home
from pipeline.store.progress import duration, number

_STAGE_HELP = "digits of its fingerprint, [KIND/]slug, folder name or path; `priorlab status` lists stages"
_WATCH_SECONDS = 2.0
_SILENT_SECONDS = 600.0
"""A running stage that has been silent for longer is worth a look."""


def status(
    name: Annotated[
        str | None, typer.Argument(metavar="SWEEP", help="only stages of this sweep (default: every stage)", show_default=False)
    ] = None,
    state: Annotated[
        list[str] | None, typer.Option(help=f"only stages in this state: {', '.join(STATES)}; may be repeated", show_default=False)
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="keep updating until Ctrl-C; shows unfinished stages")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the stages on disk: state, progress, rate, time left, attempts, log."""
    home = Home.from_environment()
    unknown = [wanted for wanted in state or [] if wanted not in STATES]
    if unknown:
        raise PriorlabError(f"--state is {unknown[0]!r}; a stage is one of {', '.join(STATES)}")

    def look() -> list[StageReport]:
        folders = folders_of(home, name)
        try:
            jobs = jobs_of(folders, strict=True)
        except PriorlabError as error:
            jobs = {}
            if not watch:  # else it would be said at each look
                errors.print(Text(f"note: stages with a job in Slurm show as unfinished: {error}"), soft_wrap=True)
        reports = [report_on(folder, jobs.get(folder)) for folder in folders]
        return [report for report in reports if not state or report.state in state]

    if watch and not as_json:
        with suppress(KeyboardInterrupt):  # how watching ends
            _watch(look)
        return
    reports = look()
    if as_json:
        print_json([asdict(report) for report in reports])
        return
    if not reports:
        found = f"no stage of it is {' or '.join(state)}" if state else "start with `priorlab sweep quickstart`"
        console.print(Text(f"nothing to show below {home.path}; {found}"), soft_wrap=True)
        return
    print_wide(_table(reports))
    console.print(_totals(reports))
    for report in reports:
        if report.state == "failed":
            console.print(Text(f"log of {report.stage}: {report.log}"), soft_wrap=True)


def _table(reports: list[StageReport]) -> Table:
    table = plain_table("stage", "state", "rate", "left", "tries", "progress", wrapped=["progress"])
    for report in reports:
        pace = "" if report.rate is None else f"{number(report.rate)} {report.unit}/s"
        left = "" if report.seconds_left is None else duration(report.seconds_left)
        silent = time.time() - (report.reported or time.time())
        note = f"  (no report for {duration(silent)})" if report.state == "running" and silent > _SILENT_SECONDS else ""
        cells = (report.stage, report.state, pace, left, str(report.attempts or ""), report.progress + note)
        table.add_row(*map(Text, cells))
    return table


def _totals(reports: list[StageReport]) -> str:
    counts = Counter(report.state for report in reports)
    return f"{len(reports)} stages: " + ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])


def _watch(look: Callable[[], list[StageReport]]) -> None:
    with Live(console=console, auto_refresh=False) as live:
        while True:
            reports = look()
            open_ = [report for report in reports if report.state not in ("done", "new")]
            live.update(Group(_totals(reports), _table(open_)), refresh=True)
            time.sleep(_WATCH_SECONDS)


def logs(
    stage: Annotated[str, typer.Argument(metavar="STAGE", help=_STAGE_HELP)],
    attempt: Annotated[int | None, typer.Option(help="number of an older attempt (default: the newest)", show_default=False)] = None,
    follow: Annotated[bool, typer.Option("--follow", help="keep printing new output until the stage ends")] = False,
) -> None:
    """Print a stage's log."""
    folder = Home.from_environment().find_stage(stage)
    log = find_log(folder, attempt)
    with suppress(KeyboardInterrupt):
        for piece in read_log(log, folder if follow else None):
            sys.stdout.write(piece)
            sys.stdout.flush()


def diff(
    first: Annotated[str, typer.Argument(metavar="FIRST", help=f"a stage ({_STAGE_HELP}), or a cell as SWEEP:CELL")],
    second: Annotated[str, typer.Argument(metavar="SECOND", help="the stage or cell to compare with it")],
    as_json: AsJson = False,
) -> None:
    """Show how two stages, or two cells, differ as experiments."""
    found = compare(first, second, Home.from_environment())
    if as_json:
        print_json(asdict(found))
        return
    console.print(Text(f"{found.before} -> {found.after}"), soft_wrap=True)
    for line in found.differences or ["the same experiment: no identity field differs"]:
        console.print(Text(f"  {line}"), soft_wrap=True)
    if found.shared:
        console.print(Text(f"both use {', '.join(found.shared)}"), soft_wrap=True)


def cancel(name: Annotated[str, typer.Argument(metavar="SWEEP|STAGE", help=f"a sweep, or a stage: {_STAGE_HELP}")]) -> None:
    """Stop a sweep or a stage. What it has saved stays: `priorlab resume` continues from there."""
    found = cancelling.cancel(name, Home.from_environment(), lambda text: errors.print(Text(f"note: {text}"), soft_wrap=True))
    if found.driver is not None:
        console.print(f"stopped the command that ran sweep {name} (process {found.driver})", soft_wrap=True)
    for ended in found.stages:
        console.print(Text(f"cancelled {ended}"), soft_wrap=True)
    for kept, sweep in found.left.items():
        console.print(Text(f"left {kept} running: sweep {sweep} runs it"), soft_wrap=True)
    if found.driver is None and not found.stages:
        console.print(Text(f"nothing to cancel: {name} is not running"), soft_wrap=True)


def gc(
    yes: Annotated[bool, typer.Option("--yes", help="delete it; without this, only list it")] = False,
    as_json: AsJson = False,
) -> None:
    """List, or with --yes delete, what no kept sweep needs: stages, half-written exports, logs of older attempts.

    A sweep is kept while its folder is below $PRIORLAB_HOME/sweeps. What it needs, running stages and adopted checkpoints always stay.
    """
    home = Home.from_environment()
    found = garbage.find(home)
    items = list(garbage.delete(found, home)) if yes else found
    total = sum(item.bytes for item in items)
    if as_json:
        listed = [{"path": str(item.path), "why": item.why, "bytes": item.bytes} for item in items]
        print_json({"deleted": yes, "bytes": total, "kept_sweeps": garbage.kept_sweeps(home), "items": listed})
        return
    table = plain_table("size", "what", "why", wrapped=["what"])
    for item in items:
        table.add_row(Text(filesize.decimal(item.bytes)), Text(str(item.path.relative_to(home.path))), Text(item.why))
    if items:
        print_wide(table)
    console.print(f"kept sweeps: {', '.join(garbage.kept_sweeps(home)) or 'none'}", soft_wrap=True)
    if yes:
        console.print(f"deleted {total:,} bytes", soft_wrap=True)
    elif items:
        console.print(f"no kept sweep needs these {total:,} bytes; `priorlab gc --yes` deletes them", soft_wrap=True)
    else:
        console.print("nothing to delete")


def adopt(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT", help="a Hugging Face folder (config.json, *.safetensors, tokenizer), or OWNER/NAME on the hub"
        ),
    ],
    recipe: Annotated[str, typer.Option("--as", help="the recipe whose pre-training it replaces", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="changes to the recipe", show_default=False)
    ] = None,
    link: Annotated[bool, typer.Option("--link", help="hard-link instead of copying; the folder must not change afterwards")] = False,
) -> None:
    """Import a checkpoint made elsewhere in place of a recipe's pre-training."""
    with choose_view(console) as view:
        adopted = adopting.adopt(checkpoint, recipe, overrides or [], Home.from_environment(), link=link, view=view)
    console.print(Text(f"{'adopted as' if adopted.is_new else 'already adopted as'} {adopted.stage}"), soft_wrap=True)
    changes = shlex.join([*(overrides or []), f"pretrain.adopted={adopted.digest}"])
    named = any(change.startswith("prior.name=") for change in overrides or [])
    console.print(
        Text(f"continue with: priorlab run {shlex.quote(recipe)} {changes}{'' if named else ' prior.name=NAME'}"), soft_wrap=True
    )


def doctor(as_json: AsJson = False) -> None:
    """Check this machine: versions, devices, disk, W&B login, Slurm."""
    from pipeline.home.doctor import examine

    findings = examine(Home.from_environment())
    if as_json:
        print_json([finding.__dict__ for finding in findings])
    else:
        table = plain_table("", "check", "found", wrapped=["found"])
        for finding in findings:
            table.add_row(Text("ok", "green") if finding.ok else Text("bad", "red"), finding.name, Text(finding.text))
        print_wide(table)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)
