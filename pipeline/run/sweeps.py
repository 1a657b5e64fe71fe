"""Run a sweep, or one stage of it and what depends on that."""

from __future__ import annotations

import os
from typing import Any

from pipeline.config.cluster import ClusterConfig
from pipeline.config.stages import KINDS
from pipeline.errors import PriorlabError
from pipeline.experiment.compose import Sweep
from pipeline.experiment.graph import Graph, build_graph, check_cells_differ, graph_from_specs
from pipeline.experiment.saved import save_definition, saved_sweep
from pipeline.run.devices import Devices, visible_devices
from pipeline.run.scheduler import run
from pipeline.run.state import Outcome, View
from pipeline.store.files import read_mapping
from pipeline.store.folders import Home, StageFolder, names_parents


def default_jobs(cluster: ClusterConfig) -> int:
    """As many stages as fit on the GPUs; without GPUs one per core, as a stage uses one thread."""
    return Devices(visible_devices(), cluster.stages_per_gpu).places or max(1, len(os.sched_getaffinity(0)))


def run_sweep(sweep: Sweep, home: Home, *, jobs: int | None, view: View) -> tuple[Graph, Outcome]:
    """Run what is missing, `jobs` stages at a time. Raises `PriorlabError` if another process runs this sweep."""
    graph = build_graph(sweep.cells())
    check_cells_differ(graph)
    cluster = _cluster_of(graph)
    with home.sweep_lock(sweep.name):
        save_definition(sweep, graph, home)
        return graph, run(graph, home, sweep=sweep.name, jobs=jobs or default_jobs(cluster), view=view, cluster=cluster)


def _cluster_of(graph: Graph) -> ClusterConfig:
    """The one cluster of all cells."""
    first, *others = graph.cells
    for plan in others:
        if plan.cell.recipe.cluster != first.cell.recipe.cluster:
            raise PriorlabError(
                f"cells {first.cell.id} and {plan.cell.id} have different clusters; a sweep runs on one, so cluster cannot be an axis"
            )
    return first.cell.recipe.cluster


def rerun_stage(folder: StageFolder, home: Home, *, force: bool, alone: bool, jobs: int | None, view: View) -> Outcome:
    """Run one stage and what depends on it, from the specs on disk.

    `force` forgets the stage's results, and those of everything computed from them, first. `alone` leaves dependents out.
    """
    spec = _readable_spec(folder)
    if spec is None:
        raise PriorlabError(f"{folder.spec} is damaged; start its sweep instead, which rewrites it")
    specs = [found for stage in home.stages() if (found := _readable_spec(stage)) is not None]
    graph = graph_from_specs(specs, spec["fingerprint"])
    _add_dependents_never_started(graph, spec["fingerprint"], home)
    target = graph.stages[spec["fingerprint"]]
    if force and target.config.adopted is not None:
        raise PriorlabError(
            f"{target.name} is an adopted checkpoint: it was not computed here, so it cannot be recomputed. To re-import it, "
            f"remove {folder.path} and run `priorlab adopt`"
        )
    affected = {target.fingerprint} | graph.descendants(target)
    if force:
        for node in reversed(list(graph.stages.values())):  # dependents first: a kill in between leaves nothing stale
            if node.fingerprint in affected and node.config.adopted is None:
                _clear(node.folder(home), view)
    wanted = {target.fingerprint} if alone else affected
    needed = [node for name in wanted for node in graph.ancestors(graph.stages[name])]
    wanted = wanted | {node.fingerprint for node in needed if node.folder(home).record() is None}
    saved = saved_sweep(spec["sweep"], home)
    cluster = ClusterConfig(kind="local") if saved is None else _cluster_of(build_graph(saved.cells()))
    return run(graph, home, sweep=spec["sweep"], jobs=jobs or default_jobs(cluster), view=view, cluster=cluster, only=wanted)


def _readable_spec(folder: StageFolder) -> dict[str, Any] | None:
    """A spec with all its parts; a damaged one must not stand in the way of other stages."""
    spec = read_mapping(folder.spec)
    needed = {"kind", "slug", "fingerprint", "config", "parents", "labels", "sweep", "tracking"}
    if not needed <= spec.keys() or not all(isinstance(spec[part], str) for part in ("kind", "slug", "fingerprint", "sweep")):
        return None
    return spec if spec["kind"] in KINDS and names_parents(spec) else None


def _add_dependents_never_started(graph: Graph, target: str, home: Home) -> None:
    """Stages without a spec on disk yet are known from the sweeps that plan them."""
    for path in sorted(home.path.glob("sweeps/*/sweep.yaml")):
        try:
            saved = saved_sweep(path.parent.name, home)
            planned = build_graph(saved.cells()).stages if saved is not None else {}
        except PriorlabError:  # a config that the sweep names has changed since; its own command will say so
            continue
        if target in planned:
            for fingerprint, node in planned.items():
                graph.stages.setdefault(fingerprint, node)


def _clear(folder: StageFolder, view: View) -> None:
    lock = folder.lock()
    if lock is None and folder.runs_elsewhere() is not None and folder.holder_is_dead(view.note):
        lock = folder.lock()
    if lock is None:
        raise PriorlabError(f"{folder.path} is run by {folder.holder()}; stop it before forcing it again")
    try:
        folder.clear()
    finally:
        folder.unlock(lock)
