"""`priorlab plan`: why a stage would run or be reused.

A stage that would run although the home has results of the same kind and slug is compared with the nearest of them, so that a forked
experiment explains itself before it costs anything.
"""

from __future__ import annotations

from typing import Any

from pipeline.errors import PriorlabError
from pipeline.experiment.graph import Graph, StageNode
from pipeline.home.identity import Identity, StoredIdentities, differences, own_differences, planned_identity
from pipeline.home.status import stage_state
from pipeline.run.backends import jobs_of
from pipeline.store.files import read_json
from pipeline.store.folders import Home, StageFolder, status_of

_COMPARED = 50
"""How many of the newest results of a kind and slug are compared with the planned stage."""


def explained_plan(graph: Graph, home: Home) -> list[dict[str, Any]]:
    """`describe_plan` with `why` (for people) and `drift`: the nearest older record, if any, and the fields that differ from it."""
    relatives, stored = _by_kind_and_slug(home), StoredIdentities(home)
    entries = []
    for entry, node in zip(describe_plan(graph, home), graph.stages.values(), strict=True):
        drift = None
        if entry["state"] != "done":
            drift = _nearest(node, relatives.get((node.kind, node.slug), []), stored)
        entries.append(entry | {"why": _why(entry, drift, node.folder(home)), "drift": drift})
    return entries


def describe_plan(graph: Graph, home: Home) -> list[dict[str, Any]]:
    """One entry per stage, in running order: what it is, whether it is done, where it lives, and which cells use it."""
    users: dict[str, list[str]] = {}
    for plan in graph.cells:
        for node in plan.stages():
            users.setdefault(node.fingerprint, []).append(plan.cell.id)
    folders = {fingerprint: node.folder(home) for fingerprint, node in graph.stages.items()}
    jobs = jobs_of(folders.values())
    return [
        {
            "stage": node.name,
            "kind": node.kind,
            "fingerprint": fingerprint,
            "state": stage_state(folders[fingerprint], jobs.get(folders[fingerprint])),
            "work": node.work,
            "cells": users[fingerprint],
            "parents": {role: parent.name for role, parent in node.parents.items()},
            "folder": str(folders[fingerprint].path),
        }
        for fingerprint, node in graph.stages.items()
    ]


def _by_kind_and_slug(home: Home) -> dict[tuple[str, str], list[StageFolder]]:
    found: dict[tuple[str, str], list[StageFolder]] = {}
    for folder in home.stages():
        if folder.record_file.exists():
            found.setdefault((folder.kind, folder.path.name.rpartition("-")[0]), []).append(folder)
    for folders in found.values():
        if len(folders) > _COMPARED:
            folders.sort(key=lambda folder: folder.record_file.stat().st_mtime)
    return found


def _nearest(node: StageNode, relatives: list[StageFolder], stored: StoredIdentities) -> dict[str, Any] | None:
    if not relatives:
        return None
    planned = planned_identity(node)
    compared = []
    for folder in relatives[-_COMPARED:]:
        known = _readable(folder, stored)
        if known is not None and known.fingerprint != node.fingerprint:
            distance = len(differences(known, planned))  # through all parents; among equally near ones, the newest
            compared.append((distance, -folder.record_file.stat().st_mtime, known.name, known))
    if not compared:
        return None
    nearest = min(compared, key=lambda found: found[:3])[-1]
    return {"from": nearest.name, "fields": own_differences(nearest, planned)}


def _readable(folder: StageFolder, stored: StoredIdentities) -> Identity | None:
    try:
        return stored.of(folder)
    except PriorlabError:  # a damaged relative explains nothing and blocks nothing
        return None


def _why(entry: dict[str, Any], drift: dict[str, Any] | None, folder: StageFolder) -> str:
    if entry["state"] == "done":
        adopted = (folder.record() or {}).get("adopted")
        if adopted:
            return f"adopted from {adopted['source']}"
        spec = read_json(folder.spec)
        return f"made in sweep {spec['sweep']}" if isinstance(spec, dict) and "sweep" in spec else ""
    if entry["state"] == "running":
        return "another process runs it; this one would wait"
    if entry["state"] == "failed":
        return f"failed: {status_of(folder).get('message', 'no reason recorded')}"
    if entry["state"] in ("unfinished", "cancelled"):
        return "resumes from its last checkpoint" if any(folder.checkpoints.glob("*")) else "started, has no checkpoint"
    return f"not {drift['from']}: {'; '.join(drift['fields'])}" if drift else ""
