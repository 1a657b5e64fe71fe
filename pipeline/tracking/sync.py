"""Upload runs tracked offline to W&B."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pipeline.errors import PriorlabError
from pipeline.experiment.graph import build_graph
from pipeline.experiment.saved import known_sweep
from pipeline.store.folders import Home, StageFolder

_AT_ONCE = 50
"""Runs per call of W&B's own command."""


def waiting_runs(home: Home, sweep: str | None) -> list[Path]:
    """Folders of offline runs that W&B has not marked as sent: of one sweep and its stages, or of the whole home.

    Runs of a running stage or sweep are left out: W&B would mark them as failed.
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


def send(waiting: list[Path]) -> None:
    """Upload runs. Raises `PriorlabError` if W&B did not accept all."""
    for start in range(0, len(waiting), _AT_ONCE):
        batch = waiting[start : start + _AT_ONCE]
        subprocess.run([sys.executable, "-E", "-P", "-m", "wandb", "sync", *map(str, batch)], check=False)
        left = [run for run in batch if not _sent(run)]  # only the marks show a failure: it exits with 0 even then
        if left:
            still = len(left) + len(waiting) - start - len(batch)
            raise PriorlabError(
                f"W&B did not accept all runs (its message is above): {still} of {len(waiting)} wait, the first is {left[0]}; repeat "
                "the command to send the rest"
            )
