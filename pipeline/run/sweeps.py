"""What the commands do with a sweep: plan it, run it, compare it, and pick it up again from its folder."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.compare.evaluations import load_evaluations
from pipeline.compare.summary import findings, summary
from pipeline.config.cluster import ClusterConfig
from pipeline.config.recipe import STAGE_CONFIGS, CorpusStage
from pipeline.errors import PriorlabError
from pipeline.experiment.compose import Cell, Sweep, validate_in_full
from pipeline.experiment.fingerprint import drift
from pipeline.experiment.graph import CellPlan, Graph, StageNode, build_graph, graph_from_specs
from pipeline.run.launch import visible_devices
from pipeline.run.runner import Outcome, View, run
from pipeline.run.slurm.queue import Job, job_of, live_jobs
from pipeline.store.files import read_json, write_json_atomically, write_text_atomically
from pipeline.store.folders import NAME, Home, StageFolder, status_of

_COMPARISON_VERSION = 5
"""Raised when the comparison's files change for the same results: they are then written anew."""


@dataclass(frozen=True)
class Comparison:
    """Results of a sweep so far, and where its files are."""

    summary: dict[str, Any]
    report: Path


def default_jobs() -> int:
    """One stage per core on CPU (a stage uses one thread), one per GPU otherwise."""
    return len(visible_devices()) or max(1, len(os.sched_getaffinity(0)))


def describe_plan(graph: Graph, home: Home) -> list[dict[str, Any]]:
    """One entry per stage, in running order: what it is, whether it is done, where it lives, and which cells use it."""
    users: dict[str, list[str]] = {}
    for plan in graph.cells:
        for node in plan.stages():
            users.setdefault(node.fingerprint, []).append(plan.cell.id)
    folders = {fingerprint: node.folder(home) for fingerprint, node in graph.stages.items()}
    jobs = live_jobs(folders.values())
    return [
        {
            "stage": node.name,
            "kind": node.kind,
            "fingerprint": fingerprint,
            "state": stage_state(folders[fingerprint], jobs),
            "work": _work(node),
            "cells": users[fingerprint],
            "parents": {role: parent.name for role, parent in node.parents.items()},
            "folder": str(folders[fingerprint].path),
        }
        for fingerprint, node in graph.stages.items()
    ]


def stage_state(folder: StageFolder, jobs: dict[str, Job]) -> str:
    """done | queued | running | cancelled | failed | unfinished | new; `jobs` are those that live in Slurm."""
    if folder.record() is not None:
        return "done"
    if not folder.path.exists():
        return "new"
    job = job_of(folder, jobs)
    if job is not None:
        return "queued" if job.waiting else "running"
    if folder.is_held():
        return "running"
    if folder.cancelled.exists():
        return "cancelled"
    return "failed" if status_of(folder).get("state") == "failed" else "unfinished"


def _work(node: StageNode) -> str:
    """The size of a stage's work, for people."""
    settings = getattr(node.config, node.kind)
    if node.kind == "corpus":
        return str(settings.size)
    if node.adopted is not None:
        return f"adopted checkpoint {node.adopted[:19]}"
    if node.kind in ("pretrain", "midtrain"):
        corpus = node.parents["corpus"].config
        assert isinstance(corpus, CorpusStage)
        tokens = settings.steps * settings.global_batch * corpus.corpus.block_size
        return f"{settings.steps:,} steps, {tokens:,} tokens"
    if node.kind == "rl":
        rollouts = settings.steps * settings.prompts_per_step * settings.samples_per_prompt
        return f"{settings.steps:,} steps, {rollouts:,} rollouts"
    return f"{settings.problems:,} problems x {settings.samples} samples"


def run_sweep(sweep: Sweep, home: Home, *, jobs: int, view: View) -> tuple[Graph, Outcome]:
    """Run what is missing. Raises `PriorlabError` if another process runs this sweep."""
    graph = build_graph(sweep.cells())
    cluster = _cluster_of(graph)
    with home.sweep_lock(sweep.name):
        save_definition(sweep, graph, home)
        return graph, run(graph, home, sweep=sweep.name, jobs=jobs, view=view, cluster=cluster)


def _cluster_of(graph: Graph) -> ClusterConfig:
    """The one cluster of all cells."""
    first, *others = graph.cells
    for plan in others:
        if plan.cell.recipe.cluster != first.cell.recipe.cluster:
            raise PriorlabError(
                f"cells {first.cell.id} and {plan.cell.id} have different clusters; a sweep runs on one, so cluster can be no axis"
            )
    return first.cell.recipe.cluster


def save_definition(sweep: Sweep, graph: Graph, home: Home) -> None:
    folder = home.sweep(sweep.name)
    definition = folder / "sweep.yaml"
    text = sweep.as_yaml()
    if not definition.exists() or definition.read_text(encoding="utf-8") != text:
        write_text_atomically(definition, text)
    cells = "".join(json.dumps(_cell_row(plan)) + "\n" for plan in graph.cells)
    listed = folder / "cells.jsonl"
    if not listed.exists() or listed.read_text(encoding="utf-8") != cells:
        write_text_atomically(listed, cells)


def _cell_row(plan: CellPlan) -> dict[str, Any]:
    return {
        "cell": plan.cell.id,
        "coordinates": plan.cell.coordinates,
        "stages": [node.name for node in plan.stages()],
        "recipe": plan.cell.recipe.model_dump(mode="json"),
    }


def saved_sweep(name: str, home: Home) -> Sweep | None:
    """A sweep as it was last started, with the recipes its cells had then; None if it never was."""
    if not NAME.fullmatch(name):  # the name of a stage, or a path
        return None
    folder = home.sweep(name)
    definition, listed = folder / "sweep.yaml", folder / "cells.jsonl"
    if not definition.exists() or not listed.exists():
        return None
    try:
        tree = yaml.safe_load(definition.read_text(encoding="utf-8"))
        rows = [json.loads(line) for line in listed.read_text(encoding="utf-8").splitlines()]
        parts: dict[str, Any] = {}
        cells = tuple(Cell(row["cell"], row["coordinates"], validate_in_full(row["recipe"], parts)) for row in rows)
        return Sweep(name, tree["axes"], tree["recipe"], tree["description"], cells)
    except (yaml.YAMLError, ValueError, KeyError, TypeError) as error:
        raise PriorlabError(
            f"{folder} is damaged, or of another version of priorlab ({error}); start the sweep again with its `priorlab sweep` command"
        ) from error


def known_sweep(name: str, home: Home) -> Sweep:
    """`saved_sweep`, or a `PriorlabError` that lists the sweeps there are."""
    saved = saved_sweep(name, home)
    if saved is None:
        known = sorted(path.parent.name for path in home.path.glob("sweeps/*/sweep.yaml"))
        raise PriorlabError(f"no sweep {name!r} below {home.path}; there are: {', '.join(known) or 'none'}")
    return saved


def redefinition(sweep: Sweep, home: Home) -> list[str]:
    """How a sweep differs from what its folder was last started with; empty if it is new or the same."""
    try:
        saved = saved_sweep(sweep.name, home)
    except PriorlabError as error:
        return [str(error)]
    if saved is None:
        return []
    before = {cell.id: cell.recipe for cell in saved.cells()}
    after = {cell.id: cell.recipe for cell in sweep.cells()}
    changes = [f"cell {name} is new" for name in after.keys() - before.keys()]
    changes += [f"cell {name} is no longer part of it" for name in before.keys() - after.keys()]
    fields: dict[str, None] = {}  # ordered, each change once however many cells share it
    for name in after.keys() & before.keys():
        if before[name] != after[name]:
            fields |= dict.fromkeys(drift(before[name].model_dump(mode="json"), after[name].model_dump(mode="json")))
    return sorted(changes) + list(fields)


def compare_sweep(sweep: Sweep, graph: Graph, home: Home) -> Comparison | None:
    """Write the comparison if results are new; None while nothing is evaluated."""
    folder = home.sweep(sweep.name)
    report = folder / "report.html"
    digest = _digest(sweep, graph, home)
    stamp = folder / "comparison.json"
    kept = _kept_comparison(stamp)
    if kept.get("digest") == digest and report.exists() and (folder / "results.csv").exists():
        return Comparison(kept["summary"], report)
    evaluations = load_evaluations(graph, home)
    if not evaluations:
        return None
    from pipeline.report.build import write_comparison  # matplotlib and pyarrow take a second to import
    from pipeline.tracking.runs import log_comparison

    folder.mkdir(parents=True, exist_ok=True)
    found = findings([plan.cell for plan in graph.cells], evaluations)
    shown = summary(found, home)
    write_comparison(sweep.name, sweep.description, graph, found, shown, home)
    log_comparison(sweep.name, graph.cells[0].cell.recipe.tracking, folder, evaluations, shown, summary_run_id(sweep.name, graph))
    write_json_atomically(stamp, {"digest": digest, "summary": shown})
    return Comparison(shown, report)


def summary_run_id(sweep: str, graph: Graph) -> str:
    """Of the sweep's summary run in W&B: another one where other checkpoints are compared."""
    compared = [node.fingerprint for plan in graph.cells for node in [*plan.evaluations.values(), *plan.milestones.values()]]
    return f"{sweep}-{hashlib.sha256(json.dumps([sweep, compared]).encode()).hexdigest()[:16]}"


def _kept_comparison(stamp: Path) -> dict[str, Any]:
    """The comparison as last written, or {} if there is none to rely on: it is derived, and made again at little cost."""
    try:
        kept = read_json(stamp)
    except PriorlabError:
        return {}
    return kept if isinstance(kept, dict) else {}


def _digest(sweep: Sweep, graph: Graph, home: Home) -> str:
    """Changes when a record of the sweep does, or its description."""
    digest = hashlib.sha256(
        json.dumps([_COMPARISON_VERSION, sweep.name, sweep.description, [plan.cell.id for plan in graph.cells]]).encode()
    )
    for node in graph.stages.values():
        record = node.folder(home).record_file
        try:
            stamp = f"{node.fingerprint} {record.stat().st_mtime_ns}"
        except FileNotFoundError:
            stamp = f"{node.fingerprint} -"
        digest.update(stamp.encode())
    return digest.hexdigest()


def rerun_stage(folder: StageFolder, home: Home, *, force: bool, alone: bool, jobs: int, view: View) -> Outcome:
    """Run one stage and what depends on it, from the specs on disk.

    `force` forgets the stage's results, and those of everything computed from them, first. `alone` leaves dependents out.
    """
    spec = _readable_spec(folder)
    if spec is None:
        raise PriorlabError(f"{folder.spec} is damaged; start its sweep instead, which writes it anew")
    specs = [found for stage in home.stages() if (found := _readable_spec(stage)) is not None]
    graph = graph_from_specs(specs, spec["fingerprint"])
    _add_dependents_never_started(graph, spec["fingerprint"], home)
    target = graph.stages[spec["fingerprint"]]
    if force and target.adopted is not None:
        raise PriorlabError(
            f"{target.name} is an adopted checkpoint: it was not computed here, so it cannot be made again. To bring it in anew, "
            f"remove {folder.path} and run `priorlab adopt`"
        )
    wanted = {target.fingerprint}
    if not alone:
        wanted |= graph.descendants(target)
    if force:
        wanted |= graph.descendants(target)
        for node in reversed(list(graph.stages.values())):  # dependents first: a kill in between leaves nothing stale
            if node.fingerprint in wanted and node.adopted is None:
                _clear(node.folder(home))
        if alone:
            wanted = {target.fingerprint}
    else:
        wanted |= {node.fingerprint for node in graph.ancestors(target) if node.folder(home).record() is None}
    saved = saved_sweep(spec["sweep"], home)
    cluster = None if saved is None else _cluster_of(build_graph(saved.cells()))
    return run(graph, home, sweep=spec["sweep"], jobs=jobs, view=view, cluster=cluster, only=wanted)


def _readable_spec(folder: StageFolder) -> dict[str, Any] | None:
    """A spec with all its parts; a damaged one must not stand in the way of other stages."""
    try:
        spec = read_json(folder.spec)
    except PriorlabError:
        return None
    needed = {"kind", "slug", "fingerprint", "config", "parents", "labels", "sweep", "tracking"}
    return spec if isinstance(spec, dict) and needed <= spec.keys() and spec["kind"] in STAGE_CONFIGS else None


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


def _clear(folder: StageFolder) -> None:
    lock = folder.lock()
    if lock is None:
        raise PriorlabError(f"{folder.path} is run by {folder.holder()}; stop it before forcing it again")
    try:
        folder.clear()
    finally:
        folder.unlock(lock)
