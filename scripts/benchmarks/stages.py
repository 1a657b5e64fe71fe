"""One recipe's stages, planned and run for a benchmark as in a sweep."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.experiment.compose import load_recipe
from pipeline.experiment.graph import StageNode, build_graph
from pipeline.run.scheduler import run
from pipeline.run.state import StageState
from pipeline.store.folders import Home


class Silent:
    """A view that shows failures only."""

    def changed(self, stage: StageState, states: list[StageState]) -> None:
        if stage.state == "failed":
            sys.exit(f"{stage.node.name} failed: {stage.reason}; see {stage.log}")

    def note(self, text: str) -> None:
        return

    def tick(self, states: list[StageState]) -> None:
        return


def planned(recipe: str, overrides: Sequence[str]) -> dict[str, StageNode]:
    """The stages of the recipe's one cell by kind; `evaluate` is the pre-trained model's."""
    (cell,) = build_graph(load_recipe(recipe, overrides).cells()).cells
    return cell.chain | {"evaluate": cell.evaluations["pretrain"]}


def run_stages(recipe: str, overrides: Sequence[str], home: Home, *kinds: str) -> dict[str, Path]:
    """Run the stages of these kinds, which must include their parents; returns their export folders."""
    graph = build_graph(load_recipe(recipe, overrides).cells())
    nodes = {kind: graph.cells[0].chain[kind] for kind in kinds}
    run(graph, home, sweep="benchmark", jobs=1, view=Silent(), only=[node.fingerprint for node in nodes.values()])
    return {kind: node.folder(home).export for kind, node in nodes.items()}
