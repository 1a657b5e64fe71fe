"""`priorlab plan --effect`: how many hours a sweep takes with other numbers of seeds and problems."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from pipeline.costs.plan import Assumptions, planned_costs
from pipeline.experiment.graph import Graph, StageNode
from pipeline.store.folders import Home


@dataclass(frozen=True)
class Hours:
    """Hours with one stage at a time: per seed without its evaluations, and per sample of one problem in all its cells."""

    per_seed: float
    per_sample: float
    source: str

    def of(self, seeds: int, problems: int, samples: int) -> float:
        return seeds * (self.per_seed + self.per_sample * problems * samples)


def timed_hours(graph: Graph, home: Home) -> Hours | None:
    """From what the graph's finished stages took; None while a kind of stage has none. A corpus is made once and not counted."""
    took: dict[str, list[float]] = {}
    for node in graph.stages.values():
        record = None if node.kind == "corpus" else node.folder(home).record()
        seconds = None if record is None else record["provenance"].get("seconds")
        if isinstance(seconds, (int, float)):
            took.setdefault(node.kind, []).append(seconds / 3600)
    counted = [node for node in graph.stages.values() if node.kind != "corpus"]
    if {node.kind for node in counted} - took.keys():
        return None
    return _per_seed(graph, [(node, fmean(took[node.kind])) for node in counted], "stages timed in this home, one at a time")


def assumed_hours(graph: Graph, home: Home, assumed: Assumptions) -> Hours:
    """By the formulas of `plan --costs`. Raises `PriorlabError` while the vocabulary's size is not known."""
    by_name = {node.name: node for node in graph.stages.values()}
    entries = planned_costs(graph, home, assumed)
    hours = [(by_name[name], entry["hours"]) for entry in entries for name in entry["stages"]]
    return _per_seed(graph, hours, f"formulas for {assumed.device_name}s, as of plan --costs")


def _per_seed(graph: Graph, hours: Iterable[tuple[StageNode, float]], source: str) -> Hours:
    recipes = [plan.cell.recipe for plan in graph.cells]
    seeds, protocol = len({recipe.seed for recipe in recipes}), recipes[0].evaluate
    told = list(hours)
    evaluating = sum(one for node, one in told if node.kind == "evaluate")
    rest = sum(one for node, one in told if node.kind != "evaluate")
    problems = sum(of_set.problems for _, of_set in recipes[0].evaluation_sets.values())
    return Hours(rest / seeds, evaluating / seeds / problems / protocol.samples, source)
