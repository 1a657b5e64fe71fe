"""Upload runs tracked offline to W&B."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from pipeline.errors import PriorlabError
from pipeline.experiment.graph import build_graph
from pipeline.experiment.saved import known_sweep
from pipeline.store.folders import Home, StageFolder

_AT_ONCE = 50
"""Runs per call of W&B's own command."""
_CUT_SHORT = re.compile(r'Failed to (?:read|sync all data from) "(?P<path>[^"]+)": (?P<reason>.*)')
"""What W&B's command says about a log whose beginning or end it cannot read. If it is the beginning, it sends no other log either."""
_MARK = "cut-short"
"""A file beside such a log, with W&B's words: what it holds was sent, and it is not tried again."""


def waiting_runs(home: Home, sweep: str | None) -> list[Path]:
    """Folders of offline runs that wait to be sent: of one sweep and its stages, or of the whole home.

    Runs of a running stage or sweep are left out: W&B would mark them as failed.
    """
    if sweep is None:
        folders = [*home.path.glob("stages/*/*"), *home.path.glob("sweeps/*")]
    else:
        graph = build_graph(known_sweep(sweep, home).cells())
        folders = [*(node.folder(home).path for node in graph.stages.values()), home.sweep(sweep)]
    begun = [folder for folder in folders if any(folder.glob("wandb/offline-run-*")) and not StageFolder(folder).is_held()]
    return [run for folder in begun for run in sorted(folder.glob("wandb/offline-run-*")) if not _is_settled(run)]


def _is_settled(run: Path) -> bool:
    return any(run.glob("*.wandb.synced")) or (run / _MARK).exists()


def send(waiting: list[Path]) -> list[Path]:
    """Upload runs. Returns those with a log that is cut short, as a killed stage leaves it; what can be read of it was sent.

    Raises `PriorlabError` once all is tried if W&B did not accept some, and at once if it accepts none.
    """
    cut_short: list[Path] = []
    refused: list[Path] = []
    for start in range(0, len(waiting), _AT_ONCE):
        batch = left = waiting[start : start + _AT_ONCE]
        while left and (found := _sync(left)):
            cut_short += found
            left = [run for run in left if not _is_settled(run)]
        left = [run for run in batch if not _is_settled(run)]  # only the marks show a failure: W&B's command exits with 0 even then
        refused += left
        if left == batch:
            refused += waiting[start + _AT_ONCE :]
            break
    if refused:
        raise PriorlabError(
            f"W&B did not accept all runs (its message is above): {len(refused)} of {len(waiting)} wait, the first is {refused[0]}; "
            "repeat the command to try them again"
        )
    return cut_short


def _sync(runs: list[Path]) -> list[Path]:
    """One call of W&B's command. Marks the runs whose log it found to be cut short, and returns them."""
    command = [sys.executable, "-E", "-P", "-m", "wandb", "sync", *map(str, runs)]
    found = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            said = _CUT_SHORT.search(line)
            if said is None:
                sys.stderr.write(line)
                continue
            log = Path.cwd() / said["path"]
            for run in (run for run in runs if run.resolve() in (log.resolve(), log.resolve().parent)):
                (run / _MARK).write_text(said["reason"] + "\n", encoding="utf-8")
                found.append(run)
    return found
