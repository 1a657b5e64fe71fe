"""Homes with stages in any state, written by the store's own functions; nothing runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from pipeline.cli.app import app
from pipeline.config.stages import KINDS
from pipeline.errors import PriorlabError
from pipeline.experiment.compose import Sweep, load_sweep
from pipeline.experiment.graph import Graph, StageNode, build_graph
from pipeline.experiment.saved import save_definition
from pipeline.store.files import manifest_of, write_json_atomically
from pipeline.store.folders import Home, StageFolder


@dataclass(frozen=True)
class Shelf:
    """A home, and ways to fill it."""

    home: Home

    def sweep(self, *overrides: str, name: str = "smoke") -> Graph:
        """A sweep that was started, with only its definition."""
        sweep: Sweep = load_sweep("smoke", overrides, rename=name)
        graph = build_graph(sweep.cells())
        with self.home.sweep_lock(name):
            save_definition(sweep, graph, self.home)
        return graph

    def begun(self, node: StageNode, log: str = "", **status: Any) -> StageFolder:
        """A stage after its start: spec, an attempt, and its last report."""
        folder = node.folder(self.home)
        folder.path.mkdir(parents=True, exist_ok=True)
        write_json_atomically(folder.spec, node.spec(self.home, "smoke"), durable=False)
        (folder.new_attempt() / "stdout.log").write_text(log)
        if status:
            write_json_atomically(folder.status, status, durable=False)
        return folder

    def done(self, node: StageNode, size: int = 10) -> StageFolder:
        """A finished stage whose export is one file."""
        folder = self.begun(node)
        folder.export.mkdir()
        (folder.export / "model.safetensors").write_bytes(b"x" * size)
        record = {
            "kind": node.kind,
            "fingerprint": node.fingerprint,
            "recipe_version": KINDS[node.kind].version,
            "identity": node.config.identity(),
            "parents": {role: parent.fingerprint for role, parent in node.parents.items()},
            "manifest": manifest_of(folder.export),
            "metrics": {},
            "provenance": {"started": 1.0, "seconds": 1.0},
        }
        write_json_atomically(folder.record_file, record, durable=False)
        return folder

    def call(self, *arguments: str) -> Result:
        """The command in this process; errors meant for the user stay exceptions."""
        return CliRunner().invoke(app, list(arguments), env={"PRIORLAB_HOME": str(self.home.path), "COLUMNS": "300"})

    def json(self, *arguments: str) -> Any:
        shown = self.call(*arguments, "--json")
        assert shown.exit_code == 0, shown.output
        return json.loads(shown.stdout)  # W&B writes to stderr

    def refusal(self, *arguments: str) -> str:
        """The message of a command that must be refused."""
        shown = self.call(*arguments)
        assert isinstance(shown.exception, PriorlabError), shown.output
        return str(shown.exception)


def shelf_at(path: Path) -> Shelf:
    return Shelf(Home(path / "home"))
