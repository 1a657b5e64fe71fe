"""`python -m tests.pipeline.tiny.driver NAME JOBS [KEY=VALUE]...`: run the sweep `smoke` with tiny stages, below $PRIORLAB_HOME."""

from __future__ import annotations

import json
import os
import sys

from rich.console import Console

from pipeline.cli.view import PlainView
from pipeline.experiment.compose import load_sweep
from pipeline.experiment.graph import build_graph
from pipeline.run.scheduler import run
from pipeline.store.folders import Home


def main() -> None:
    name, jobs, *overrides = sys.argv[1:]
    os.environ["WANDB_MODE"] = "disabled"  # its start takes longer than a tiny stage
    graph = build_graph(load_sweep("smoke", overrides).cells())
    home = Home.from_environment()
    view = PlainView(Console(stderr=True, width=400))
    with home.sweep_lock(name):
        cluster = graph.cells[0].cell.recipe.cluster
        outcome = run(graph, home, sweep=name, jobs=int(jobs), view=view, cluster=cluster, package="tests.pipeline.tiny")
    print(json.dumps({state.node.name: [state.state, state.reason] for state in outcome.states}))
    sys.exit(130 if outcome.interrupted else 0 if outcome.complete else 1)


if __name__ == "__main__":
    main()
