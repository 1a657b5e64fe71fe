"""`priorlab diff`: how two stages, or two cells of sweeps, differ as experiments. Execution settings do not count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.errors import PriorlabError
from pipeline.experiment.fingerprint import drift
from pipeline.experiment.graph import CellPlan, build_graph
from pipeline.experiment.saved import known_sweep
from pipeline.home.identity import StoredIdentities, differences
from pipeline.store.folders import Home


@dataclass(frozen=True)
class Comparison:
    """`shared` are stages that both cells use; two stages share none."""

    before: str
    after: str
    differences: list[str]
    shared: list[str]


def compare(first: str, second: str, home: Home) -> Comparison:
    """Two stages, by any name that `find_stage` takes, or two cells, as SWEEP:CELL."""
    if (":" in first) != (":" in second):
        raise PriorlabError(f"of {first!r} and {second!r} one is a cell, one a stage; give two stages, or two cells as SWEEP:CELL")
    if ":" not in first:
        stored = StoredIdentities(home)
        before, after = (stored.of(home.find_stage(name)) for name in (first, second))
        return Comparison(before.name, after.name, differences(before, after), [])
    one, other = _cell(first, home), _cell(second, home)
    used = {node.fingerprint for node in other.stages()}
    shared = [node.name for node in one.stages() if node.fingerprint in used]
    return Comparison(first, second, list(drift(_identity(one), _identity(other))), shared)


def _identity(plan: CellPlan) -> dict[str, Any]:
    """Of the recipe, and at which share of pre-training RL starts: a stage's identity has the step instead."""
    recipe = plan.cell.recipe
    found = recipe.identity()
    return found if recipe.rl is None else found | {"rl": {"start": recipe.rl.start} | found["rl"]}


def _cell(name: str, home: Home) -> CellPlan:
    sweep, _, cell = name.partition(":")
    plans = {plan.cell.id: plan for plan in build_graph(known_sweep(sweep, home).cells()).cells}
    if cell not in plans:
        raise PriorlabError(f"sweep {sweep!r} has no cell {cell!r}; it has {', '.join(plans)}")
    return plans[cell]
